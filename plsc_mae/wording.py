"""Numbers in messages for people: plurals, ranges, ordinals and counts of parameters."""

from __future__ import annotations

_SIBILANTS = ("s", "x", "z", "ch", "sh")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1: `1 image`, `3 classes`, `2 queries`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(_SIBILANTS) and not noun.endswith("epoch"):  # its "ch" is pronounced as a k
        return f"{number} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}s"


def span(low: int, high: int) -> str:
    """Return the integers from `low` to `high` as text: `0 to 3`, or `3` if both are equal."""
    return f"{low}" if low == high else f"{low} to {high}"


def ordinal(number: int) -> str:
    """Return a positive number as an ordinal: `1st`, `2nd`, `3rd`, `4th`, `11th`, `22nd`."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def in_millions(number: int) -> str:
    """Return a number in millions, `85.8 M`, or in full below a million, `34,912`."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def guides(*names: str) -> str:
    """Return the paths of guides in the repository: `docs/faq.md and docs/export.md (Chinese: docs/zh)`.

    Every one of them must have a Chinese version.
    """
    return f"{' and '.join(f'docs/{name}.md' for name in names)} (Chinese: docs/zh)"
