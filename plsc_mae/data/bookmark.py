"""What a process is reading, and since when, for another process or thread to see."""

from __future__ import annotations

import mmap
import time
from typing import NamedTuple

import numpy as np

_NOTHING = -1


class Reading(NamedTuple):
    """A glance at a bookmark: number of the sample, None between two, and seconds since it was set."""

    index: int | None  # type: ignore[assignment]  # hides tuple.index
    seconds: float


class Bookmark:
    """One place in memory that is shared with the processes forked after it was made; one of them writes."""

    def __init__(self) -> None:
        self._cells = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.float64)  # index, time; a double holds 2**53
        self.clear()

    def set(self, index: int) -> None:
        """Note that sample `index` is being read from now on."""
        self._cells[1] = time.monotonic()  # before the index: a new one must never be seen with an old time
        self._cells[0] = index

    def clear(self) -> None:
        """Note that nothing is being read."""
        self.set(_NOTHING)

    def look(self) -> Reading:
        """Tell what is being read and for how long."""
        index = int(self._cells[0])
        return Reading(None if index == _NOTHING else index, time.monotonic() - float(self._cells[1]))
