"""Rules for the prose of the package: docstrings open with a verb or a noun phrase, and phrases read once."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "plsc_mae").rglob("*.py"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

RIDDLE = re.compile(r"(What|Which|Who|Whose|Whether|How|Where)\b")
# Words and phrases that readers had to read twice, with the remedy for whoever writes the next one.
WORDS = {
    r"\btell(s|ing)?\b|\btold\b": "say, report, log, return, show",
    r"\bamiss\b": "wrong; a problem",
    r"\bpass(es|ed|ing)? (over|by)\b": "skip, ignore",
    r"\b(so|as) many\b": "N",
    r"\bforetells?\b|\bforetold\b": "predict",
    r"\banew\b": "again; from the start",
    r"\b(of )?no matter\b": "irrelevant",
    r"\bnobody\b": "name the subject",
    r"\bgo(es)? on (with|from|where)\b|\bgo(es)? on\b": "continue, resume",
    r"\bexclude each other\b": "cannot be combined",
    r"\bat odds\b": "inconsistent",
    r"\bin silence\b": "silently",
    r"\bat hand\b": "available; of this command",
    r"\bmakes? of\b": "produces from",
    r"\bby itself\b|\bby themselves\b": "alone, automatically",
    r"\bstands? for\b": "represents, replaces",
    r"\bbethink|\bfarewell|\bbehold\b|\bthereof\b": "plain words",
    r"(?-i:\bnone that\b|\bis none\b|\bare none\b)": "there is no",
    r"(colour|centre|\bgrey|neighbour|normalis|recognis|labelled|modelling|learnt|behaviour|favour|spelt)": "American",
}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of comments and string literals of a source file."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            yield token.start[0], token.string


def findings(text: str, line: int, place: str) -> Iterator[str]:
    for pattern, remedy in WORDS.items():
        for match in re.finditer(pattern, text, flags=re.IGNORECASE):
            number = line + text.count("\n", 0, match.start())
            yield f"{place}:{number}: '{match[0]}' -> {remedy}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_like_headings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    assert [getattr(node, "name", "module") for node in nodes if RIDDLE.match(ast.get_docstring(node) or "")] == []


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path):
    place = str(path.relative_to(ROOT))
    texts = prose(path) if path.suffix == ".py" else [(1, path.read_text(encoding="utf-8"))]
    assert [finding for line, text in texts for finding in findings(text, line, place)] == []


def test_the_word_list_finds_what_it_names():
    found = list(findings("# nobody told us\n# what is amiss in the centre", 1, "x"))
    assert len(found) == 4
