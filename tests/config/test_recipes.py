"""Every recipe is valid, states its origin and is listed; its header is the form that `plsc-mae configs` reads."""

from __future__ import annotations

import re

import pytest

from plsc_mae.config import recipes
from plsc_mae.config.recipes import Result, read_recipe, recipe_name, recipe_names, recipe_path
from plsc_mae.config.resolve import load_config, read_yaml
from plsc_mae.config.schema import plain_values
from plsc_mae.models.registry import list_models

pytestmark = pytest.mark.compat
REQUIRED = {"Source", "Cost", "Measured here", "Command"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_and_complete(name):
    recipe = read_recipe(name)
    given = {key: value.raw for key, value in read_yaml(name).items()}
    config = load_config(name, **({"resume": "FILE"} if given.get("eval") else {}))
    assert (config.phase, config.method) == (recipe.phase, recipe.method) == (given["phase"], given["method"])
    assert config.model in list_models()
    assert given["model"] == config.model
    assert not set(given) - set(plain_values(config)) - {"use_cls_token"}
    assert recipe.title
    assert recipe.fields.keys() >= REQUIRED
    assert "\n# Published:" in recipe_path(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in recipe_names() if read_recipe(name).phase == "pretrain"])
def test_results_of_a_pre_training_name_the_evaluation(name):
    measures = {result.measure for result in read_recipe(name).published}
    assert measures <= {"fine-tuned top-1", "linear top-1", "attentive top-1", "k-NN top-1", "loss"}


def test_the_recipes_cover_the_published_runs():
    assert len(recipe_names()) > 80
    names = set(recipe_names("mae_priv"))
    assert names >= {f"mae_priv/ViT-S_{run}" for run in ("100E_GAP", "150E_GAP", "SGD_CLS-Token")}
    assert {name.partition("/")[0] for name in recipe_names()} >= {
        "mae",
        "cae",
        "mmpretrain",
        "simmim",
        "small",
        "demo",
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("demo", ["demo/cae", "demo/mae", "demo/mae_objects", "demo/simmim"]),
        ("demo/", ["demo/cae", "demo/mae", "demo/mae_objects", "demo/simmim"]),
        (
            "cae/*large*",
            ["cae/attentive_large", "cae/finetune_large", "cae/linprobe_large", "cae/pretrain_large_1600e"],
        ),
        ("SIMMIM/LINPROBE", ["simmim/linprobe_vit_base"]),
        ("nothing", []),
    ],
)
def test_names_by_pattern(pattern, expected):
    assert list(recipe_names(pattern)) == expected


def test_names_with_and_without_folder_and_suffix():
    for text in ("demo/mae", "configs/demo/mae.yaml", "configs/demo/mae", "demo/mae.yaml"):
        assert recipe_name(text) == "demo/mae"
    for text in ("mae", "demo/../demo/mae", "/demo/mae", "DEMO/mae", ""):
        assert recipe_name(text) == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("83.6 % top-1", Result("83.6 %", "top-1", "", "a README.md")),
        ("0.99 loss, first epoch", Result("0.99", "loss", "first epoch", "a README.md")),
        (
            "83.57 +- 0.08 % top-1, mean of 4 seeds (FINETUNE.md, PyTorch)",
            Result("83.57 +- 0.08 %", "top-1", "mean of 4 seeds", "FINETUNE.md, PyTorch"),
        ),
    ],
)
def test_a_published_number(line, expected):
    assert recipes._result(line, "a README.md") == expected


@pytest.mark.parametrize("line", ["about 80 %", "80 %", "top-1 80 %"])
def test_an_unreadable_number_is_an_error(line):
    with pytest.raises(ValueError, match=re.escape(line)):
        recipes._result(line, "")
