"""Options that files state beside their weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.loading.training_config import stated_heads, training_config
from plsc_mae.weights import Checkpoint

SMALL = "mae_vit_small_patch16_dec192d4b"  # 384 wide with 6 heads, decoder 192 wide with 3


@pytest.mark.parametrize(
    ("options", "key", "width", "heads"),
    [
        (None, "num_heads", 384, None),
        ("text", "num_heads", 384, None),
        ({"num_heads": 4}, "num_heads", 384, 4),
        ({"num_heads": 4, "model": SMALL}, "num_heads", 384, 4),
        ({"num_heads": None, "model": SMALL}, "num_heads", 384, 6),
        ({"num_heads": "odd", "model": SMALL}, "num_heads", 384, 6),
        ({"model": SMALL}, "num_heads", 192, None),
        ({"model": SMALL}, "decoder_num_heads", 192, 3),
        ({"model": SMALL}, "decoder_num_heads", None, None),
        ({"model": "mae_vit_small_patch16"}, "decoder_num_heads", None, None),
        ({"model": "another"}, "num_heads", 384, None),
    ],
)
def test_stated_heads(options, key, width, heads):
    stored = Checkpoint(Path("some.pd"), {}, {}, {} if options is None else {"args": options})
    assert stated_heads(stored, key, width) == heads


def test_a_classifier_is_named_with_the_checkpoint_it_started_from(tmp_path):
    meta = {"phase": "finetune", "method": "mae", "args": {"phase": "finetune", "finetune": "run/checkpoint-9.pd"}}
    stored = Checkpoint(tmp_path / "best.pd", {}, {}, meta)
    with pytest.raises(CheckpointError, match=r"best\.pd is a classifier, .*run/checkpoint-9\.pd"):
        training_config(stored, {})
