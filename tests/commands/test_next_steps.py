"""The first and the last lines of a run: what will happen, and the commands for its result, which work."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from pathlib import Path

import pytest
from paddle import nn

from plsc_mae import console
from plsc_mae.cli import COMMANDS, main
from plsc_mae.commands.next_steps import after_pretraining
from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping, parse
from plsc_mae.errors import UserError


def run(line: str, capsys) -> list[str]:
    assert main(shlex.split(line)) == 0
    return capsys.readouterr().out.splitlines()


def next_commands(lines: list[str]) -> dict[str, list[str]]:
    """Return {use: words after the program} of the lines below `next:`."""
    found = {}
    for line in lines[lines.index("next:") + 1 :]:
        use, *words = shlex.split(line)
        found[use] = words[next(i for i, word in enumerate(words) if word in {name.split()[0] for name in COMMANDS}) :]
    return found


@pytest.fixture(scope="module")
def options(tiny) -> str:
    return f"{' '.join(tiny)} --epochs 1 --warmup_epochs 0 --num_workers 0 --vis_freq 0 --device cpu"


@pytest.mark.compat
def test_a_run_announces_its_plan_and_ends_with_commands_that_work(options, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = run(f"pretrain {options} --data_path {images} --output_dir 'my run'", capsys)
    rows = {line.split()[0]: line for line in lines if line.startswith("  ") and not line.startswith("   ")}
    assert list(rows) == ["data", "network", "recipe", "options", "memory", "time", "output", "stop"]
    assert f"{images}: 30 images, 3 updates per epoch" in rows["data"]
    assert "iB per process for tensors" in rows["memory"]
    (continuing,) = (line for line in lines if line.endswith("--auto_resume"))
    assert "pretrain --config 'my run/config.yaml' --auto_resume" in continuing
    assert any(line.startswith("epoch 0 done (1/1): loss ") for line in lines)
    (end,) = (line for line in lines if line.startswith("finished: 1 of 1 epochs, 3 updates"))
    assert end.endswith("saved in my run/checkpoint-0.pd")

    commands = next_commands(lines)
    assert list(commands) == ["learning", "pictures", "classifier", "others"]
    assert main([*commands["pictures"], "--max_images", "1"]) == 0
    assert Path("my run/reconstruction").is_dir()
    assert main(commands["others"]) == 0
    flags = "--epochs 1 --batch_size 10 --warmup_epochs 0 --num_workers 0"
    tuned = [*commands["classifier"], *flags.split()]
    capsys.readouterr()
    assert main(tuned) == 0
    commands = next_commands(capsys.readouterr().out.splitlines())
    assert list(commands) == ["predict", "evaluate", "deploy", "others"]
    assert main([str(images) if word == "DIR" else word for word in commands["predict"]]) == 0
    assert main(commands["evaluate"]) == 0
    parse(commands["deploy"][1:], COMMANDS["export"].configs, prog="export")


def test_a_network_without_an_encoder_has_no_pictures(tmp_path, capsys):
    config = from_mapping({"data_path": "<data in memory>", "output_dir": str(tmp_path)}, PRETRAIN, "test")
    with log_shown():
        after_pretraining(config, nn.Linear(2, 2), tmp_path / "checkpoint-0.pd", is_labeled=False)
    assert list(next_commands(capsys.readouterr().out.splitlines())) == ["learning", "others"]


@contextlib.contextmanager
def log_shown():
    """Show the log of the package as a command does."""
    log = logging.getLogger("plsc_mae")
    before = log.handlers, log.level, log.propagate
    console.log_to_console(main=True)
    yield
    log.handlers, log.level, log.propagate = before


def test_json_and_quiet(options, images, tmp_path, capsys):
    line = f"pretrain {options} --data_path {images}"
    events = [json.loads(text) for text in run(f"{line} --output_dir {tmp_path / 'json'} --json", capsys)]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "message"] == [
        "plan",
        "start",
        "update",
        "update",
        "epoch",
        "end",
        "next",
    ]
    by_kind = dict(zip(kinds, events, strict=True))
    assert by_kind["plan"]["images"] == 30
    assert by_kind["plan"]["planned_memory_bytes"] > 1e5
    assert by_kind["start"]["continue"].endswith("--auto_resume")
    stored = json.loads((tmp_path / "json/train.jsonl").read_text())
    assert {name: by_kind["update"][name] for name in stored if name != "run"} == {
        name: value for name, value in stored.items() if name != "run"
    }
    assert by_kind["epoch"]["train_loss"] == pytest.approx(stored["loss"])
    assert by_kind["end"]["checkpoint"].endswith("checkpoint-0.pd")
    assert run(f"{line} --output_dir {tmp_path / 'quiet'} --quiet", capsys) == []
    with pytest.raises(UserError, match=r"--quiet.*--json"):
        parse(["--quiet", "--json"], COMMANDS["pretrain"].configs, prog="pretrain")
