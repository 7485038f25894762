"""A disk without space: the run goes on, nothing old is touched, and when there is space again nothing is missing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading

import pytest

from plsc_mae.cli import main
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint import saver
from plsc_mae.train.trainer import Trainer

pytestmark = pytest.mark.long

FLAGS = "--batch_size 12 --epochs 2 --save_ckpt_steps 3"


@pytest.fixture
def small_disk(run):
    """A disk of 3 MB, on which the run `disk` saves."""
    folder = run.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def impatient(monkeypatch):
    """Tries again sooner."""
    monkeypatch.setattr(saver, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(saver, "FIRST_WAITS", (0.1,))
    monkeypatch.setattr(saver, "RETRY_SHARE", 10.0)


def fill(folder) -> None:
    descriptor = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(descriptor, b"x" * 4096):
            pass
    os.close(descriptor)


def at_iterations(monkeypatch, actions) -> None:
    """Do something before iterations of a run, by their number."""
    count, iterate = [0], Trainer.iterate

    def wrapped(*arguments):
        count[0] += 1
        actions.get(count[0], lambda: None)()
        return iterate(*arguments)

    monkeypatch.setattr(Trainer, "iterate", wrapped)


def steps(folder, name: str = "train.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).read_text().splitlines()]


def assert_same_weights(one, two) -> None:
    ours, theirs = checkpoint_file.load(one).tensors, checkpoint_file.load(two).tensors
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_run_outlives_a_full_disk(run, small_disk, impatient, monkeypatch, caplog, capfd):
    """Full from iteration 5 to 15, so also at the end of an epoch; saves were due after 6, 9, 10, 12 and 15."""
    run.here("whole", FLAGS)
    held = {}

    def look() -> None:
        latest = small_disk / "checkpoint-latest.pd"
        held.update(
            step=checkpoint_file.verify(latest)["step"], files=sorted(path.name for path in small_disk.iterdir())
        )
        (small_disk / "filler").unlink()

    at_iterations(monkeypatch, {5: lambda: fill(small_disk), 16: look})
    run.here("disk", FLAGS)
    # The log comes first; whether its next line fits into what is left of a page is the disk's affair.
    assert re.search(r"(earlier checkpoints are untouched|cannot be written); the run cont", capfd.readouterr().err)
    assert held["step"] == 3
    assert [name for name in held["files"] if name.startswith("checkpoint")] == ["checkpoint-latest.pd"]
    assert steps(small_disk) == list(range(1, 21))
    assert steps(small_disk, "log.txt") == [10, 20]
    assert checkpoint_file.verify(small_disk / "checkpoint-previous.pd")["step"] >= 16
    assert_same_weights(small_disk / "checkpoint-1.pd", run.folder / "whole/checkpoint-1.pd")


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_finished_run_waits_for_space(run, small_disk, impatient, monkeypatch, capfd):
    at_iterations(monkeypatch, {18: lambda: fill(small_disk)})
    finish = saver.Saver.finish

    def finish_with_room_soon(*arguments) -> None:
        threading.Timer(0.5, (small_disk / "filler").unlink).start()
        finish(*arguments)

    monkeypatch.setattr(saver.Saver, "finish", finish_with_room_soon)
    run.here("disk", FLAGS)
    assert checkpoint_file.verify(small_disk / "checkpoint-1.pd")["step"] == 20
    assert steps(small_disk) == list(range(1, 21))
    assert "the run continues and will retry" in capfd.readouterr().err


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_run_that_cannot_save_says_so_in_the_end(run, small_disk, impatient, monkeypatch, capfd):
    """After its patience, or at once when it is asked to stop; what was there is there."""
    monkeypatch.setattr(saver, "PATIENCE", 0.5)
    arguments = [run.command, *run.arguments("disk", FLAGS)]
    at_iterations(monkeypatch, {5: lambda: fill(small_disk)})
    assert main(arguments) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("plsc-mae: error: the run ends but checkpoint-1.pd could not be written to"), told
    assert checkpoint_file.verify(small_disk / "checkpoint-latest.pd")["step"] == 3

    (small_disk / "filler").unlink()
    monkeypatch.undo()
    at_iterations(monkeypatch, {2: lambda: fill(small_disk), 5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert main([*arguments, "--auto_resume"]) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("plsc-mae: error: the run ends but checkpoint-latest.pd could not be written to"), told
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    assert [record["step"] for record in run.here("disk", f"{FLAGS} --auto_resume")] == list(range(1, 21))
