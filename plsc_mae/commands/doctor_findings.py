"""Findings of the doctor's checks."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """A problem that the doctor found.

    Attributes:
        text: the problem, its place and the remedy.
        stops: True for an error, which makes the doctor exit with code 1; False for a warning.
    """

    text: str
    stops: bool

    def __str__(self) -> str:
        return f"{'!' if self.stops else '?'} {self.text}"


def error(text: str) -> Finding:
    """Return the finding of an error, for example a problem that ends runs or invalidates their results."""
    return Finding(text, stops=True)


def warning(text: str) -> Finding:
    """Return the finding of a warning, for example a problem that affects some runs only, or their speed."""
    return Finding(text, stops=False)
