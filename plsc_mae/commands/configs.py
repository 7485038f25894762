"""`plsc-mae configs`: lists the recipes that `--config` accepts by name, or prints one of them."""

from __future__ import annotations

import itertools
import shutil
import textwrap

from plsc_mae.config.recipes import Recipe, no_recipe, read_recipe, recipe_name, recipe_names, recipe_path
from plsc_mae.config.runs import ConfigsConfig
from plsc_mae.errors import ConfigError

_LEAST_WIDTH = 16  # of the columns that are wrapped; names, commands and methods take the width they need


def run(config: ConfigsConfig) -> None:
    """Print a recipe if `config` has its full name, else a table of the recipes whose names match.

    Raises:
        ConfigError: no name matches.
    """
    if name := recipe_name(config.recipe):
        print(recipe_path(name).read_text(encoding="utf-8"), end="")
        return
    names = recipe_names(config.recipe)
    if not names:
        raise ConfigError(no_recipe(config.recipe))
    for line in _table([read_recipe(name) for name in names], shutil.get_terminal_size((120, 0)).columns):
        print(line)
    print("\nplsc-mae configs NAME prints a recipe; plsc-mae COMMAND --config NAME runs it.")
    print("Published accuracies are in %; those of pre-training name the evaluation that followed.")


def _table(recipes: list[Recipe], width: int) -> list[str]:
    """Return the lines of a table of `recipes` that fits `width` columns if possible."""
    titles = ("name", "command", "method", "published", "cost")
    rows = [(r.name, r.phase, r.method, _published(r), r.fields.get("Cost", "")) for r in recipes]
    fixed = [max(map(len, column)) for column in list(zip(titles, *rows, strict=True))[:3]]
    room = max(width - sum(fixed) - 2 * (len(titles) - 1), 2 * _LEAST_WIDTH)
    widths = [*fixed, room - room // 2, room // 2]
    lines = []
    for row in (titles, *rows):
        cells = [textwrap.wrap(text, size, break_on_hyphens=False) for text, size in zip(row, widths, strict=True)]
        wrapped = itertools.zip_longest(*cells, fillvalue="")
        lines += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in wrapped]
    return lines


def _published(recipe: Recipe) -> str:
    """Return the published numbers by measure, for example "top-1 83.6, 83.34; k-NN 28.9"."""
    by_measure: dict[str, list[str]] = {}
    for result in recipe.published:
        measure = result.measure.removesuffix(" top-1")
        by_measure.setdefault(measure, []).append(result.value.removesuffix(" %"))
    return "; ".join(f"{measure} {', '.join(values)}" for measure, values in by_measure.items())
