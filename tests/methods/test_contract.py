"""The sizes in which an encoder differs from that of its model's name."""

from __future__ import annotations

import pytest

from plsc_mae.config import FINETUNE, PRETRAIN
from plsc_mae.methods.contract import describe_changes


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (FINETUNE["mae"](model="vit_base_patch16"), ""),
        (FINETUNE["mae"](model="vit_base_patch16", patch_size=16, embed_dim=768), ""),
        (
            FINETUNE["mae"](model="vit_base_patch16", patch_size=8, embed_dim=64, depth=4, num_heads=4),
            " (changed to patch_size 8, embed_dim 64, depth 4, num_heads 4)",
        ),
        (PRETRAIN["cae"](mlp_ratio=2.5), " (changed to mlp_ratio 2.5)"),
    ],
)
def test_sizes_that_differ_from_those_of_the_name_are_named(config, text):
    assert describe_changes(config) == text
