"""Record of the current activity of this process, which the hang detector reads.

Entering a phase costs a few assignments. All processes of a run must enter the same phases in the same order, so that
of two processes the one that has entered fewer phases is behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class Activity:
    """Activity of a process."""

    # "start", "data", "forward", "backward", "collective", "optimizer", "log", "evaluation" or "save"
    phase: str = "start"
    entered: int = 0  # number of phases entered so far
    waiting: bool = False  # whether the process waits for others in a method of `World` or `Group`
    ticks: int = 0  # number of steps within phases so far, such as batches of an evaluation or tensors of a checkpoint
    update: int = 0  # number of the last finished update of the run
    has_updated: bool = False  # whether this process has finished an update since `start_run`

    def __str__(self) -> str:
        barrier = ", waiting for the others" if self.waiting else ""
        return f"in phase '{self.phase}'{barrier} after update {self.update}"


current = Activity()


def enter(phase: str) -> None:
    """Record the start of a phase; all processes must call."""
    current.phase = phase
    current.entered += 1


def tick() -> None:
    """Record progress within a long phase; any process may call, any number of times."""
    current.ticks += 1


def finish_update(update: int) -> None:
    """Record that update `update` has finished, counted from 1."""
    current.update, current.has_updated = update, True


def start_run(update: int) -> None:
    """Record that a run starts after `update` updates."""
    current.update, current.has_updated = update, False
    enter("start")


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Record that this process waits for others within the context."""
    current.waiting = True
    try:
        yield
    finally:
        current.waiting = False


def fetching(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`, and be in the phase "data" while the next one is fetched; all processes must call."""
    enter("data")
    for item in items:
        yield item
        enter("data")
