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
    """Return an error: a finding about a problem that, for example, ends runs or invalidates their results."""
    return Finding(text, stops=True)


def warning(text: str) -> Finding:
    """Return a warning: a finding about a problem that, for example, affects only some runs, or only their speed."""
    return Finding(text, stops=False)
