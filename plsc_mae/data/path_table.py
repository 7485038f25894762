"""Sequence of paths in one array of bytes."""

from __future__ import annotations

import bisect
import os
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt


class PathTable:
    """Sequence of paths packed into one array of bytes.

    It needs less memory than a list, and forked workers share it. (Reading a list changes the reference counts of its
    strings, which makes the kernel copy every page.)
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._packed: bytes | bytearray = bytearray()
        ends = array("q", [0])
        for path in paths:
            self._packed += os.fsencode(path)
            ends.append(len(self._packed))
        self._ends = np.frombuffer(ends, np.int64)

    @classmethod
    def from_arrays(cls, packed: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> PathTable:
        """Create a table from the result of `arrays`.

        Raises:
            ValueError: the arrays are inconsistent.
        """
        if ends.ndim != 1 or not len(ends) or ends[0] or ends[-1] != packed.size or (np.diff(ends) < 0).any():
            raise ValueError("the ends of the paths do not fit their bytes")
        table = cls(())
        table._packed, table._ends = packed.astype(np.uint8).tobytes(), ends.astype(np.int64)
        return table

    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return all bytes [b] and the ends of the paths in them [n + 1], starting with 0."""
        return np.frombuffer(bytes(self._packed), np.uint8), self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(self._bytes(index))

    def __iter__(self) -> Iterator[str]:
        return (os.fsdecode(self._bytes(index)) for index in range(len(self)))

    def find(self, path: str) -> int | None:
        """Return the index of a path in a table that is sorted by bytes; None if the path is missing."""
        wanted = os.fsencode(path)
        index = bisect.bisect_left(range(len(self)), wanted, key=self._bytes)
        return index if index < len(self) and self._bytes(index) == wanted else None

    def _bytes(self, index: int) -> bytes:
        return bytes(self._packed[self._ends[index] : self._ends[index + 1]])
