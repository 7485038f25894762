"""docs/reference/options.md is the page that the declarations of the options give."""

from __future__ import annotations

import runpy
from pathlib import Path

from plsc_mae.cli import COMMANDS
from plsc_mae.config.schema import options

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/options.md"


def test_the_page_is_current():
    page = runpy.run_path(str(ROOT / "scripts/options.py"))["page"]
    assert page(COMMANDS) == PAGE.read_text(encoding="utf-8"), "run `python scripts/options.py`"


def test_the_page_has_every_option_of_every_command():
    sections = dict(part.split("\n", 1) for part in PAGE.read_text(encoding="utf-8").split("## plsc-mae ")[1:])
    assert set(sections) == set(COMMANDS)
    for name, command in COMMANDS.items():
        if not name.startswith(("bench ", "plan ")):  # the section refers to another one
            declared = {item.name for config in command.configs.values() for item in options(config)}
            assert not [option for option in declared if f"`--{option}" not in sections[name]]
