"""Commands in the messages of a run."""

from __future__ import annotations

import types

import pytest

from plsc_mae.config import FINETUNE
from plsc_mae.config.resolve import from_mapping
from plsc_mae.train.announcements import continuation

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
