"""The map of the rooms is the one that the imports give."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_map_is_current():
    rooms = runpy.run_path(str(ROOT / "scripts/rooms.py"))
    drawn = rooms["draw"](rooms["read_rooms"]())
    assert drawn == (ROOT / "docs/rooms.svg").read_text(encoding="utf-8"), "run `python scripts/rooms.py`"


def test_arrows_leave_out_what_a_longer_path_implies():
    arrows = runpy.run_path(str(ROOT / "scripts/rooms.py"))["arrows"]
    rooms = {"a": frozenset({"b", "c"}), "b": frozenset({"c"}), "c": frozenset()}
    assert arrows(rooms) == [("a", "b"), ("b", "c")]
