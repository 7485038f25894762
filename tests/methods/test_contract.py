"""The sizes in which an encoder differs from that of its model's name."""

from __future__ import annotations

import fnmatch

import pytest

from plsc_mae.config import FINETUNE, PRETRAIN
from plsc_mae.methods import load_recipe
from plsc_mae.methods.contract import ENCODER_SIZES, describe_changes, sizes_of_model
from plsc_mae.models.registry import VARIANTS


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


@pytest.mark.parametrize("method", FINETUNE)
def test_the_nearest_classifier_has_the_nearest_width_and_differs_in_sizes_only(method):
    recipe = load_recipe(method)
    names = [recipe.base_model, *fnmatch.filter(VARIANTS, recipe.models)]
    narrowest = min(names, key=lambda name: VARIANTS[name].arguments["embed_dim"])
    tiny = {**sizes_of_model(recipe.base_model), "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
    nearest = recipe.size_options(tiny)["model"]
    assert VARIANTS[nearest].arguments["embed_dim"] == VARIANTS[narrowest].arguments["embed_dim"]
    others = [
        ({k: v for k, v in VARIANTS[name].arguments.items() if k not in ENCODER_SIZES}, VARIANTS[name].dialects)
        for name in (nearest, recipe.base_model)
    ]
    assert others[0] == others[1]  # so the name changes no number
