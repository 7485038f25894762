"""Recipes: the config files below `configs/`, which every installation contains.

A recipe is named by its path below `configs/` without `.yaml`, for example `mae/finetune_vit_base`. The comments at the
top of its file are a title and fields. A field starts as `# Cost: ...` and continues in lines that start with `#   `.
A line of the field Published is one number, or `none`:

    # Published:
    #   83.57 +- 0.08 % top-1, mean of 4 seeds (FINETUNE.md)
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from plsc_mae.errors import ConfigError

FIELDS = ("Source", "Published", "Cost", "Measured here", "Batch", "Note", "Command")
NONE = "none"
_FIELD = re.compile(rf"# ({'|'.join(FIELDS)}):(?: (.*))?")
_CONTINUED = "#   "
_RESULT = re.compile(
    r"(?P<value>[\d.]+(?: \+- [\d.]+)?(?: %)?) (?P<measure>[A-Za-z][^,()]*)(?:, (?P<condition>[^()]+?))?"
    r"(?: \((?P<source>.+)\))?"
)


class Result(NamedTuple):
    """A published number."""

    value: str  # the number with its unit, for example "83.6 %"
    measure: str  # the quantity, for example "top-1", or "linear top-1" in a recipe of pre-training
    condition: str  # further circumstances, for example the length of pre-training; may be empty
    source: str  # the document that states the number; by default the first of the field Source


class Recipe(NamedTuple):
    """The header of a recipe."""

    name: str  # the path below `configs/` without `.yaml`
    phase: str  # the kind of training, which is also the command
    method: str
    title: str  # short description of the run
    fields: dict[str, str]  # text of every field but Published, by the field's name
    published: tuple[Result, ...]  # the published numbers


def recipe_folder() -> Path:
    """Return the folder of the recipes: in the installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@functools.cache
def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")))


def recipe_names(pattern: str = "") -> tuple[str, ...]:
    """Return the names of the recipes, sorted.

    Args:
        pattern: folder, shell pattern or part of a name, which selects recipes; empty selects all.
    """
    names = _names_in(recipe_folder())
    inside = tuple(name for name in names if name.startswith(f"{pattern.rstrip('/')}/"))
    wanted = pattern.lower() if re.search(r"[*?\[]", pattern) else f"*{pattern.lower()}*"
    return inside or tuple(name for name in names if fnmatch.fnmatchcase(name.lower(), wanted))


def recipe_name(text: str) -> str:
    """Return the name of the recipe `text`, which may have `configs/` and `.yaml` around it; "" if unknown."""
    name = text.removeprefix("configs/").removesuffix(".yaml")
    return name if name in recipe_names() else ""


def recipe_path(name: str) -> Path:
    """Return the file of the recipe `name`."""
    return recipe_folder() / f"{name}.yaml"


def find_config(text: str) -> Path:
    """Return the file or pipe that `--config TEXT` names, else the file of the recipe of that name.

    Raises:
        ConfigError: there is neither.
        OSError: the path cannot be examined, for example because it is too long.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():  # a pipe is allowed
        return path
    if name := recipe_name(text):
        return recipe_path(name)
    if path.is_dir():
        raise ConfigError(f"cannot read the config file {text}: it is a folder; name a file in it")
    raise ConfigError(f"cannot read the config file {text}: there is no such file and {no_recipe(text)}")


def no_recipe(text: str) -> str:
    """Return the clause "no recipe of that name" for a message, with up to three names similar to `text`, if any."""
    close = _close_names(text)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"no recipe of that name; {meant}`plsc-mae configs` lists the recipes"


def _close_names(text: str) -> list[str]:
    wanted = text.removeprefix("configs/").removesuffix(".yaml").removesuffix(".yml").lower()
    by_case = {name.lower(): name for name in recipe_names()}
    same_file = [name for name in by_case.values() if name.lower().rpartition("/")[2] == wanted.rpartition("/")[2]]
    close = same_file or [by_case[name] for name in difflib.get_close_matches(wanted, by_case, n=3)]
    return [f"'{name}'" for name in close[:3]]


def read_recipe(name: str) -> Recipe:
    """Read the header of the recipe `name`.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line of the field Published is not of the form in the module's docstring.
    """
    text = recipe_path(name).read_text(encoding="utf-8")
    title, fields = _split_header(text.splitlines())
    options = yaml.safe_load(text)
    source = re.split("[,;:]", " ".join(fields.get("Source", ())))[0]
    published = tuple(_result(line, source) for line in fields.pop("Published", ()) if line != NONE)
    joined = {field: " ".join(lines) for field, lines in fields.items()}
    return Recipe(name, options["phase"], options["method"], title, joined, published)


def _split_header(lines: Iterable[str]) -> tuple[str, dict[str, list[str]]]:
    """Split the comments at the top of a file into (title, {field: its lines})."""
    title: list[str] = []
    fields: dict[str, list[str]] = {}
    current = title
    for line in lines:
        if not line.startswith("#"):
            break
        if found := _FIELD.fullmatch(line):
            current = fields.setdefault(found[1], [])
            current += [found[2]] if found[2] else []
        else:
            current.append(line.removeprefix(_CONTINUED if fields else "# "))
    return " ".join(title), fields


def _result(line: str, source: str) -> Result:
    found = _RESULT.fullmatch(line)
    if found is None:
        raise ValueError(f"expected `NUMBER MEASURE, CONDITION (SOURCE)`, got {line!r}")
    return Result(found["value"], found["measure"], found["condition"] or "", found["source"] or source)
