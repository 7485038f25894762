"""Write docs/reference/results.md from the headers of the recipes: `python scripts/results.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from plsc_mae.config.recipes import Recipe, read_recipe, recipe_names

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "results.md"
HEAD = """# Results

This page is written by `python scripts/results.py` from the headers of the recipes. `plsc-mae configs` prints the same
list, `plsc-mae configs NAME` one recipe, and `plsc-mae pretrain --config NAME` (or `finetune`, `linprobe`) runs it in
any folder.

Two kinds of numbers are kept apart: those that the sources publish, and those that we measured. **We have run no
published recipe at its full scale.** Accuracies are top-1 in % on ImageNet-1k unless the condition names other images.
Results of detection and segmentation are left out.

## Measured here
"""
UNMEASURED = "not run"


def page(recipes: Sequence[Recipe]) -> str:
    """Return the page: what was measured here, then a table of published numbers for each folder of recipes."""
    measured = [r for r in recipes if not r.fields["Measured here"].startswith(UNMEASURED)]
    rows = [(f"[{r.name}](../../configs/{r.name}.yaml)", r.fields["Measured here"], r.fields["Cost"]) for r in measured]
    parts = [HEAD, *_table(("recipe", "result", "cost"), rows), "\n## Published, by source\n"]
    for folder, members in groupby(recipes, key=lambda recipe: recipe.name.partition("/")[0]):
        published = [recipe for recipe in members if recipe not in measured]
        if published:
            titles = ("recipe", "published", "measure", "condition", "stated in", "cost")
            parts += [f"\n### {folder}\n", *_table(titles, (row for r in published for row in _rows(r)))]
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


def _rows(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    """Yield a row per published number; the first one links the recipe and has the cost."""
    first = (f"[{recipe.name}](../../configs/{recipe.name}.yaml)", recipe.fields["Cost"])
    if not recipe.published:
        yield first[0], "none", "", "", recipe.fields["Source"], first[1]
    for i, result in enumerate(recipe.published):
        name, cost = ("", "") if i else first
        yield name, result.value, result.measure, result.condition, result.source, cost


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = (titles, ["---"] * len(titles), *rows)
    return ["| " + " | ".join(cell or " " for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    PAGE.write_text(page([read_recipe(name) for name in recipe_names()]), encoding="utf-8")
