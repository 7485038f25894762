"""Draw the map of the package's rooms, docs/rooms.svg, from its imports: `python scripts/rooms.py`.

A room is a folder or a top-level module of plsc_mae. It is drawn above everything it imports. An arrow is an import.
An import that a longer path of arrows implies has no arrow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plsc_mae"
MAP = ROOT / "docs" / "rooms.svg"
BOX_WIDTH, BOX_HEIGHT, GAP, ROW_HEIGHT, MARGIN = 168, 50, 22, 104, 20
STYLE = (
    "text{font-family:sans-serif;font-size:15px;text-anchor:middle;fill:#1b2733}"
    ".caption{font-size:11px;fill:#5a6b7b}.room{fill:#eaf2fb;stroke:#3b6ea5}"
    ".arrow{fill:none;stroke:#8aa1b8;stroke-width:1.3}"
)


CAPTIONS = {
    "analysis": "features, pictures",
    "api": "train, embed, export",
    "cli": "the command line",
    "commands": "one file per command",
    "config": "every option",
    "console": "lines beside bars",
    "data": "files to batches",
    "errors": "messages to users",
    "export": "other programs",
    "file_kinds": "first bytes",
    "files": "atomic writes",
    "folder_lock": "one writer at a time",
    "gpu_check": "checks of a new GPU",
    "loading": "checkpoints to networks",
    "losses": "cross-entropy, pixels",
    "masking": "random, blocks",
    "methods": "MAE, CAE, SimMIM, ...",
    "models": "ViT and its kin",
    "names": "printing, writing",
    "optim": "AdamW, LARS, schedules",
    "parallel": "processes of a run",
    "parity": "oracles, originals",
    "pipeline": "stages of a network",
    "plan": "memory and time",
    "report": "one page about a run",
    "runtime": "threads, devices",
    "train": "the loop",
    "verbs": "callable packages",
    "weights": "reader, dialects",
    "wording": "plurals, ordinals",
}

LOADED = re.compile(r"^plsc_mae\.(\w+)\.(?:\w+(?::\w+)?)?$")  # "plsc_mae.commands.knn:run", f"plsc_mae.methods.{name}"
Rooms = Mapping[str, frozenset[str]]  # the rooms that each room imports


def read_rooms() -> Rooms:
    """Return, for each room of the package, the rooms that it imports."""
    imports: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name not in ("__init__", "__main__"):
            imports.setdefault(name, set()).update(imported_rooms(ast.parse(path.read_text(encoding="utf-8"))))
    return {name: frozenset(used & imports.keys() - {name}) for name, used in imports.items()}


def imported_rooms(tree: ast.AST) -> set[str]:
    """Return the rooms that a file imports, by import statements or by strings like those of `LOADED`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(LOADED.findall(node.value))
        if isinstance(node, ast.ImportFrom) and node.module == "plsc_mae":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plsc_mae."):
            found.add(str(node.module).split(".")[1])
    return found


def heights(rooms: Rooms) -> dict[str, int]:
    """Return the row of every room, from 0 for those that import nothing."""
    rows: dict[str, int] = {}

    def row(name: str) -> int:
        if name not in rows:
            rows[name] = max((row(used) + 1 for used in rooms[name]), default=0)
        return rows[name]

    for name in rooms:
        row(name)
    return rows


def arrows(rooms: Rooms) -> list[tuple[str, str]]:
    """Return the imports (user, used) that are not implied by a path through a third room."""
    below: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in below:
            below[name] = set(rooms[name]).union(*(reach(used) for used in rooms[name]))
        return below[name]

    return [
        (user, used)
        for user in sorted(rooms)
        for used in sorted(rooms[user])
        if not any(used in reach(other) for other in rooms[user] - {used})
    ]


def places(rows: Mapping[str, int]) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Return the upper left corner of every room's box, and the width and height of the map."""
    lines = [sorted(name for name in rows if rows[name] == number) for number in range(max(rows.values()) + 1)]
    width = max(len(line) for line in lines) * (BOX_WIDTH + GAP) - GAP + 2 * MARGIN
    found = {}
    for number, line in enumerate(lines):
        left = (width - len(line) * (BOX_WIDTH + GAP) + GAP) // 2
        y = MARGIN + (len(lines) - 1 - number) * ROW_HEIGHT
        found.update({name: (left + i * (BOX_WIDTH + GAP), y) for i, name in enumerate(line)})
    return found, width, len(lines) * ROW_HEIGHT - (ROW_HEIGHT - BOX_HEIGHT) + 2 * MARGIN


def draw(rooms: Rooms) -> str:
    """Return the map as SVG text."""
    corners, width, height = places(heights(rooms))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        "<title>The rooms of plsc_mae and their imports</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8aa1b8"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *(_arrow(corners[user], corners[used]) for user, used in arrows(rooms)),
        *(_box(name, corners[name]) for name in sorted(rooms)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(user: tuple[int, int], used: tuple[int, int]) -> str:
    x1, y1 = user[0] + BOX_WIDTH // 2, user[1] + BOX_HEIGHT
    x2, y2 = used[0] + BOX_WIDTH // 2, used[1] - 2
    middle = (y1 + y2) // 2
    return f'<path class="arrow" marker-end="url(#tip)" d="M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"/>'


def _box(name: str, corner: tuple[int, int]) -> str:
    x, y = corner
    middle = x + BOX_WIDTH // 2
    return (
        f'<rect class="room" x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<text x="{middle}" y="{y + 22}">{escape(name)}</text>'
        f'<text class="caption" x="{middle}" y="{y + 40}">{escape(CAPTIONS[name])}</text>'
    )


if __name__ == "__main__":
    MAP.write_text(draw(read_rooms()), encoding="utf-8")
