"""A run of pre-training logs the losses of trivial predictors first, once, and keeps a history."""

from __future__ import annotations

import json

from plsc_mae.report.run_folder import read_run
from plsc_mae.report.verdict import judge


def test_written_once(run, capsys):
    run.here("a", "--batch_size 12 --max_train_step 1")
    path = run.folder / "a/trivial_losses.json"
    content = json.loads(path.read_text())
    assert content["images"] == 12
    assert content["loss"] in run.records("a")[0]
    lines = capsys.readouterr().out.splitlines()
    (number,) = [i for i, line in enumerate(lines) if "trivial predictors" in line]
    assert all(f"{loss:.4g}" in lines[number] for loss in content["losses"].values())
    verdict = judge(read_run(run.folder / "a", with_pictures=False))
    assert verdict.answer != "unknown"
    assert lines[lines.index("next:") - 1] == f"is it learning? {' '.join(verdict.lines)}"
    path.write_text(path.read_text().replace('"images": 12', '"images": 13'))
    run.here("a", "--batch_size 12 --max_train_step 2 --auto_resume")
    assert json.loads(path.read_text())["images"] == 13
    events = [json.loads(line) for line in (run.folder / "a/history.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "warning"] == ["start", "end"] * 2
    starts = [event for event in events if event["event"] == "start"]
    assert [(start["step"], bool(start["resumed"])) for start in starts] == [(0, False), (1, True)]
    assert starts[0]["images_per_update"] == 12
    assert starts[0]["environment"]["processes"] == "1"
    messages = [event["message"] for event in events if event["event"] == "warning"]
    assert any("RANDOM" in message for message in messages) == ("random_init" in run.flags)  # logged before the folder


def test_64_images_are_enough(new_runs, images, tmp_path):
    run = new_runs("mae", "--accum_iter 3", images, tmp_path)
    run.here("a", "--batch_size 30 --max_train_step 1")
    assert json.loads((tmp_path / "a/trivial_losses.json").read_text())["images"] == 64
