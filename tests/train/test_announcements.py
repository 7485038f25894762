"""Commands in the messages of a run."""

from __future__ import annotations

import types

import pytest

from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.config.resolve import from_mapping
from plsc_mae.train.announcements import _rates, announce_end, continuation
from plsc_mae.train.checkpoint.state import Progress

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.mark.parametrize(
    ("paths", "exists"),
    [
        ({"data_path": "images"}, True),
        ({"data_path": "<data in memory>"}, False),
        ({"data_path": "images", "eval_data_path": "<eval_data in memory>"}, False),
    ],
)
def test_no_command_continues_a_run_with_images_in_memory(tmp_path, paths, exists):
    config = from_mapping({**paths, "output_dir": str(tmp_path)}, FINETUNE, "test")
    command = continuation(config, types.SimpleNamespace(processes=1), "0123456789ab")
    assert (command is not None) == exists


def test_a_sweep_announces_its_own_rates():
    assert _rates(LINPROBE["mae"](lr_sweep=(10.0, 100.0)), 16) == "learning rates 0.625, 6.25 (10, 100 x 16 / 256)"
    assert _rates(LINPROBE["mae"](lr_sweep=(10.0,), lr=1.0, blr=None), 16) == "learning rate 10"
    assert _rates(LINPROBE["mae"](blr=0.1), 16) == "learning rate 0.00625 (0.1 x 16 / 256)"


@pytest.mark.parametrize(
    ("first", "told"),
    [(0, ", 1300 updates in 0:01:04"), (991, ", 1300 updates, 309 of them since it was continued, in 0:01:04")],
)
def test_the_end_names_the_updates_of_its_time(tmp_path, monkeypatch, first, told):
    printed = []
    monkeypatch.setattr("plsc_mae.train.announcements.console.report", lambda text, _event: printed.append(text))
    config = from_mapping({"output_dir": str(tmp_path), "epochs": 100}, FINETUNE, "test")
    at = Progress(epoch=100, step=1300)
    announce_end(config, at, saved=None, best=None, best_epoch=None, first_step=first, seconds=64.0, stopped=False)
    assert printed[0].endswith(told)
