"""docs/reference/results.md is the page that the headers of the recipes give."""

from __future__ import annotations

import runpy
from pathlib import Path

from plsc_mae.config.recipes import read_recipe, recipe_names

ROOT = Path(__file__).parents[1]


def test_the_page_is_current_and_has_every_number():
    recipes = [read_recipe(name) for name in recipe_names()]
    text = runpy.run_path(str(ROOT / "scripts/results.py"))["page"](recipes)
    assert text == (ROOT / "docs/reference/results.md").read_text(encoding="utf-8"), "run `python scripts/results.py`"
    for recipe in recipes:
        assert recipe.name in text
        assert all(f"| {result.value} | {result.measure} |" in text for result in recipe.published)


def test_measured_and_published_numbers_are_kept_apart():
    text = (ROOT / "docs/reference/results.md").read_text(encoding="utf-8")
    measured, _, published = text.partition("## Published")
    for name in recipe_names():
        recipe = read_recipe(name)
        assert (f"[{name}]" in measured) != (f"[{name}]" in published)
        assert not (recipe.published and f"[{name}]" in measured)
