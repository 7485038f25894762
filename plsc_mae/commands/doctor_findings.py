"""Findings of the doctor's checks."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """A problem that the doctor found.

    Attributes:
        text: the problem, its place and the remedy.
        stops: True if the problem ends runs or invalidates their results; False if it affects only some runs or speed.
    """

    text: str
    stops: bool

    def __str__(self) -> str:
        return f"{'!' if self.stops else '?'} {self.text}"


def error(text: str) -> Finding:
    """Return the finding of a problem that ends runs or invalidates their results."""
    return Finding(text, stops=True)


def warning(text: str) -> Finding:
    """Return the finding of a problem that affects some runs only, or their speed."""
    return Finding(text, stops=False)
