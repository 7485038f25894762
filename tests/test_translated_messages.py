"""Messages, sentences and headings that pages explain: their English text is that of the package."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VALUE = "…"  # in a page, in place of names and numbers; in the sources, placeholders have these places
PAGES = {  # the first heading of the tables
    "docs/zh/console.md": "提示",
    "docs/zh/report.md": "报告中的英文",
    "docs/zh/evaluation.md": "列的标题",
    "docs/evaluation.md": "column",
}
# quoted texts
FEWEST = {"docs/zh/console.md": 45, "docs/zh/report.md": 25, "docs/zh/evaluation.md": 5, "docs/evaluation.md": 5}


def quoted(page: str) -> list[str]:
    """Return the texts in code spans of the first column of the page's tables of messages."""
    texts, inside = [], False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        inside = bool(first) and (inside or first == PAGES[page])
        texts += re.findall("`([^`]+)`", first) if inside else []
    return texts


@cache
def strings() -> str:
    """Return every string of the package on a line of its own, with VALUE for each expression of an f-string."""
    found = []
    for path in (ROOT / "plsc_mae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else VALUE for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def is_in_the_package(text: str) -> bool:
    """Return whether a string of the package has the words of `text`, with anything in place of each VALUE."""
    return re.search(".+".join(map(re.escape, text.strip(VALUE).split(VALUE))), strings()) is not None


@pytest.mark.parametrize("page", PAGES)
def test_quoted_messages_are_those_of_the_package(page):
    texts = quoted(page)
    assert len(texts) >= FEWEST[page]
    assert [text for text in texts if not is_in_the_package(text)] == []


def test_other_messages_are_noticed():
    assert is_in_the_package("must lie in …, got …")
    assert not is_in_the_package("must lie between …, got …")
