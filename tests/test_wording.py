"""Numbers in messages: singular, plural, ordinals, and small counts that are not rounded to zero; guides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plsc_mae.wording import counted, guides, in_millions, ordinal, span

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (3, "class", "3 classes"),
        (2, "query", "2 queries"),
        (1, "query", "1 query"),
        (2, "batch", "2 batches"),
        (2, "epoch", "2 epochs"),
        (2, "day", "2 days"),
        (2, "training image", "2 training images"),
    ],
)
def test_plurals(number, noun, text):
    assert counted(number, noun) == text


def test_guides_exist_in_both_languages():
    assert guides("few-images", "faq") == "docs/few-images.md and docs/faq.md (Chinese: docs/zh)"
    calls = re.findall(r"guides\(([^)]*)\)", "".join(path.read_text() for path in (ROOT / "plsc_mae").rglob("*.py")))
    named = {name for call in calls for name in re.findall(r"[\"']([a-z-]+)[\"']", call)}
    assert named >= {"few-images", "read-the-curves"}
    for name in named:
        assert (ROOT / f"docs/{name}.md").is_file()
        assert (ROOT / f"docs/zh/{name}.md").is_file()


def test_ranges():
    assert [span(0, 3), span(0, 0)] == ["0 to 3", "0"]


def test_ordinals():
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 113)
    assert [ordinal(n) for n in numbers] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "113th")
    ]


def test_counts_of_parameters():
    assert [in_millions(n) for n in (85_798_656, 1_000_000, 34_912, 10)] == ["85.8 M", "1.0 M", "34,912", "10"]
