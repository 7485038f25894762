"""A run goes through what befalls its data workers to the same end, or ends in one sentence."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.data.decode import PilImage
from plsc_mae.data.workers import Worker
from plsc_mae.train.checkpoint.file import find_newest, load

pytestmark = [pytest.mark.compat, pytest.mark.once, pytest.mark.long]

FLAGS = "--batch_size 12 --num_workers 2 --max_train_step 14"


@pytest.mark.parametrize(
    "run", ["mae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cae", "simmim"))], indirect=True
)
def test_killed_workers_change_nothing(run, monkeypatch, capsys):
    """Every fifth batch, the worker that made it is killed; an epoch has 10."""
    whole = run.here("whole", FLAGS)
    receive, received = Worker.receive, []

    def deadly_receive(worker: Worker):
        received.append(worker.pid)
        if len(received) % 5 == 0:
            os.kill(worker.pid, signal.SIGKILL)
        return receive(worker)

    monkeypatch.setattr(Worker, "receive", deadly_receive)
    killed = run.here("killed", FLAGS)
    assert "starting a replacement" in capsys.readouterr().err
    assert [record["loss"] for record in killed] == [record["loss"] for record in whole]
    ours, theirs = (load(find_newest(run.folder / name, "")).tensors for name in ("whole", "killed"))
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)


def test_a_file_that_is_not_read_in_time_ends_the_run_with_its_name(run, monkeypatch, capsys):
    crop_resize, slow = PilImage.crop_resize, str(run.images / "train")

    def stuck(image: PilImage, *arguments, **options):
        if image.path.startswith(slow) and image.path.endswith("7.jpg"):
            time.sleep(60)
        return crop_resize(image, *arguments, **options)

    monkeypatch.setattr(PilImage, "crop_resize", stuck)
    flags = f"{FLAGS} --worker_timeout 0.4"
    assert main([run.command, *run.arguments("stuck", flags)]) == 2
    assert "7.jpg for " in capsys.readouterr().err.splitlines()[-1]
