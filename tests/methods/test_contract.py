"""The description of a network whose sizes differ from those of its name."""

from __future__ import annotations

import pytest

from plsc_mae.config import FINETUNE, PRETRAIN
from plsc_mae.methods.contract import describe_network


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (FINETUNE["mae"](model="vit_base_patch16"), "vit_base_patch16"),
        (FINETUNE["mae"](model="vit_base_patch16", patch_size=16, embed_dim=768), "vit_base_patch16"),
        (
            FINETUNE["mae"](model="vit_base_patch16", patch_size=8, embed_dim=64, depth=4, num_heads=4),
            "vit_base_patch16 changed to patch_size 8, embed_dim 64, depth 4, num_heads 4",
        ),
        (PRETRAIN["cae"](mlp_ratio=2.5), "cae_base_patch16_224_8k_vocab changed to mlp_ratio 2.5"),
    ],
)
def test_sizes_that_differ_from_those_of_the_name_are_named(config, text):
    assert describe_network(config) == text
