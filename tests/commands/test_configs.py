"""The command that lists recipes and prints one."""

from __future__ import annotations

import pytest

from plsc_mae.cli import main
from plsc_mae.config.recipes import recipe_names, recipe_path


@pytest.fixture
def seen(capsys, monkeypatch):
    """Run the command in a terminal of 100 columns; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["configs", *words])
        return code, *capsys.readouterr()

    return run


def test_all_recipes_are_listed_with_results_and_cost(seen):
    code, out, _ = seen()
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if "/" in line.split("  ")[0]] == list(recipe_names())
    assert max(map(len, lines)) <= 100
    (row,) = (line for line in lines if line.startswith("mae/finetune_vit_base "))
    assert row.split()[:3] == ["mae/finetune_vit_base", "finetune", "mae"]
    assert "83.6" in row
    assert "7 h 11 min" in row


def test_a_pattern_selects(seen):
    _, out, _ = seen("demo")
    assert "demo/mae" in out
    assert "cae/finetune_base" not in out


@pytest.mark.parametrize("name", ["mae/finetune_vit_base", "configs/mae/finetune_vit_base.yaml"])
def test_a_recipe_is_printed_as_it_is(seen, name):
    assert seen(name) == (0, recipe_path("mae/finetune_vit_base").read_text(), "")


def test_an_unknown_name_gets_suggestions(seen):
    code, out, err = seen("mae/finetune_vit_bsae")
    assert (code, out) == (2, "")
    assert "'mae/finetune_vit_base'" in err
