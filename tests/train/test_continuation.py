"""A killed run goes on exactly: same weights, same optimizer, same log, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.folder_lock import LOCK
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.file import find_newest, load

pytestmark = [pytest.mark.compat, pytest.mark.long]


def assert_same_checkpoint(one, two):
    ours, theirs = load(one), load(two)
    assert set(ours.tensors) == set(theirs.tensors)
    assert any(key.startswith("optimizer/") for key in ours.tensors)
    for key, value in ours.tensors.items():
        np.testing.assert_array_equal(value, theirs.tensors[key], key)
    for key in ("epoch", "step", "position", "meters"):
        assert ours.meta[key] == theirs.meta[key]


END = (10, 5, "--batch_size 12 --max_train_step 20")  # of an epoch of 10 updates
MIDDLE = (13, 3, "--batch_size 12 --max_train_step 20 --num_workers 2")
ACCUMULATION = (8, 2, "--batch_size 8 --accum_iter 2 --max_train_step 18 --clip_grad 0.5")  # 15 iterations an epoch


@pytest.mark.parametrize(
    ("run", "kill_step", "save_steps", "flags"),
    [
        pytest.param("mae", *END, id="mae, end of an epoch"),
        pytest.param("mae", *MIDDLE, id="mae, middle of an epoch", marks=pytest.mark.slow),
        pytest.param("cae", *ACCUMULATION, id="cae, accumulation", marks=pytest.mark.once),
        pytest.param("simmim", *MIDDLE, id="simmim, middle of an epoch", marks=pytest.mark.once),
        pytest.param("mae", *ACCUMULATION, id="mae, accumulation", marks=pytest.mark.slow),
        pytest.param("cae", *END, id="cae, end of an epoch", marks=pytest.mark.slow),
        pytest.param("cae", *MIDDLE, id="cae, middle of an epoch", marks=pytest.mark.slow),
        pytest.param("simmim", *END, id="simmim, end of an epoch", marks=pytest.mark.slow),
        pytest.param("simmim", *ACCUMULATION, id="simmim, accumulation", marks=pytest.mark.slow),
    ],
    indirect=["run"],
)
def test_kill_and_go_on(run, kill_step, save_steps, flags):
    whole = run.here("whole", flags)
    flags += f" --save_ckpt_steps {save_steps}"
    # A long run, so that it is killed while it trains and not when it is done.
    process = run.start("cut", flags.replace("--max_train_step 20", "").replace("--max_train_step 18", ""))
    run.kill_at(process, "cut", kill_step)
    assert (run.folder / "cut" / LOCK).exists()
    rest = run.here("cut", f"{flags} --auto_resume")
    assert not (run.folder / "cut" / LOCK).exists()

    assert_same_checkpoint(*(find_newest(str(run.folder / name), "") for name in ("whole", "cut")))
    assert [record["step"] for record in rest] == [record["step"] for record in whole]
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]


@pytest.mark.once
@pytest.mark.parametrize(
    "run", ["mae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cae", "simmim"))], indirect=True
)
def test_epoch_means_survive_a_stop_in_the_epoch(run):
    run.here("whole", "--batch_size 12 --epochs 2")
    run.here("cut", "--batch_size 12 --epochs 2 --max_train_step 14")
    assert main([run.command, "--config", str(run.folder / "cut/config.yaml"), "--auto_resume"]) == 0
    whole, cut = (
        [json.loads(line) for line in (run.folder / name / "log.txt").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    assert [line["train_loss"] for line in cut] == [line["train_loss"] for line in whole]
    assert [line["epoch"] for line in cut] == [0, 1]
    assert_same_checkpoint(run.folder / "whole/checkpoint-1.pd", run.folder / "cut/checkpoint-1.pd")


@pytest.mark.once
@pytest.mark.parametrize(
    "run", ["mae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cae", "simmim"))], indirect=True
)
def test_resume_names_a_file(run):
    run.here("first", "--batch_size 12 --epochs 2 --save_ckpt_freq 1 --exp_name try")
    rest = run.here("second", f"--batch_size 12 --epochs 2 --resume {run.folder / 'first/try_checkpoint-0.pd'}")
    assert [record["epoch"] for record in rest] == [1] * 10
    assert_same_checkpoint(run.folder / "first/try_checkpoint-1.pd", run.folder / "second/checkpoint-1.pd")


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_tensors_that_the_run_has_no_place_for_are_not_dropped(run, capsys):
    """Such as the third block of the checkpoint's encoder."""
    run.here("first", "--batch_size 12 --epochs 1 --max_train_step 2 --depth 3")
    command = run.arguments("second", f"--batch_size 12 --depth 2 --resume {run.folder / 'first/checkpoint-latest.pd'}")
    assert main(["pretrain", *command]) == 2
    assert "12 have no place in the network (encoder.blocks.2." in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_damaged_checkpoints_are_passed_over_but_not_all_of_them(run, capsys):
    flags = "--batch_size 12 --save_ckpt_steps 3"
    whole = run.here("cut", f"{flags} --max_train_step 9")
    folder = run.folder / "cut"
    command = ["pretrain", *run.arguments("cut", f"{flags} --max_train_step 9 --auto_resume")]
    (folder / "checkpoint-latest.pd").write_bytes(b"")
    assert main(command) == 0
    told = capsys.readouterr()
    assert "ignoring unusable checkpoint" in told.err
    assert "checkpoint-previous.pd: epoch 0, step 6" in told.out
    assert [record["loss"] for record in run.records("cut")] == [record["loss"] for record in whole]

    for path in folder.glob("*.pd"):
        path.write_bytes(b"")
    assert main(command) == 2
    assert "has 2 checkpoints, and none" in capsys.readouterr().err
    assert len(run.records("cut")) == 9


@pytest.mark.once
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_finished_run_has_nothing_to_do(run, capsys):
    flags = "--batch_size 12 --warmup_epochs 0"
    run.here("done", f"{flags} --epochs 2 --save_ckpt_freq 1")
    assert "finished: 2 of 2 epochs, 20 updates" in capsys.readouterr().out
    folder = run.folder / "done"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for more, count in (
        ("--epochs 2", "2 of 2 epochs"),
        ("--epochs 1", "1 of 1 epoch"),
        ("--max_train_step 5", "5 of 5"),
    ):
        assert len(run.here("done", f"{flags} --auto_resume {more}")) == 20
        assert f"nothing left to do: {count}" in (out := capsys.readouterr().out)
        assert str(folder / "checkpoint-1.pd") in out.splitlines()[-1]
        assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    # A kill between two files of the last save: the missing one is written.
    (folder / "checkpoint-1.pd").rename(folder / "checkpoint-latest.pd")
    run.here("done", f"{flags} --auto_resume --epochs 2")
    assert load(folder / "checkpoint-1.pd").meta["run"] == json.loads((folder / "run.json").read_text())["run"]


@pytest.mark.once
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_new_run_never_continues_the_old_one_of_its_folder(run, capsys):
    """The old one is longer; the new one is killed after it saved, and again before."""
    flags = "--batch_size 12"
    old = run.here("shared", f"{flags} --max_train_step 20")
    assert main([run.command, *run.arguments("shared", flags)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    run.here("shared", f"{flags} --overwrite --max_train_step 3")
    new = run.here("shared", f"{flags} --auto_resume --max_train_step 5")
    assert [line["step"] for line in new] == [1, 2, 3, 4, 5]
    assert {line["run"] for line in new} == {load(run.folder / "shared/checkpoint-latest.pd").meta["run"]}
    (kept,) = (run.folder / "shared").glob("previous-*")
    assert kept.name == f"previous-{old[0]['run']}"
    assert len((kept / "train.jsonl").read_text().splitlines()) == 20
    assert checkpoint_file.read_footer(kept / "checkpoint-1.pd")["run"] == old[0]["run"]


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
@pytest.mark.parametrize(("more", "file"), [("", "moved.pd"), ("--cache_features", "")])
def test_a_resume_needs_no_pretrained_file(classifier, more, file, capsys):
    """Its weights come from the checkpoint, also those that cached features are computed with."""
    flags = f"--batch_size 12 --epochs 2 {more}"
    whole = classifier.here("whole", flags)
    classifier.here("cut", f"{flags} --max_train_step 6")
    capsys.readouterr()
    rest = classifier.here("cut", f"{flags} --finetune={file} --auto_resume")
    out, err = capsys.readouterr()
    assert "random weights" not in out + err
    assert "checkpoint-latest.pd: epoch 0, step 6" in out
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]


@pytest.mark.once
@pytest.mark.parametrize("run", ["cae"], indirect=True)
def test_an_averaged_encoder_goes_on_where_it_was(run):
    """It is no function of the weights at the stop, so it must come from the checkpoint itself."""
    flags = "--batch_size 12 --dual_path_ema 0.9"
    whole = run.here("whole", f"{flags} --max_train_step 14")
    run.here("cut", f"{flags} --max_train_step 6")
    rest = run.here("cut", f"{flags} --max_train_step 14 --auto_resume")
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]
    paths = [find_newest(str(run.folder / name), "") for name in ("whole", "cut")]
    assert_same_checkpoint(*paths)
    stored = load(paths[0]).model
    name = "encoder.blocks.0.mlp.fc1.weight"
    assert np.abs(stored[f"alignment_{name}"] - stored[name]).max() > 1e-4
