"""What the doctor's examinations come to."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """Something amiss.

    Attributes:
        text: what, where, and the remedy.
        stops: whether it will end runs or spoil their results; else some runs, or speed.
    """

    text: str
    stops: bool

    def __str__(self) -> str:
        return f"{'!' if self.stops else '?'} {self.text}"


def grave(text: str) -> Finding:
    """Something that ends runs or spoils their results."""
    return Finding(text, stops=True)


def slight(text: str) -> Finding:
    """Something that matters to some runs only, or to their speed."""
    return Finding(text, stops=False)
