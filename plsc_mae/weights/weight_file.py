"""Weight file that is open for reading: the input of the readers of single files.

Mapped bytes occupy memory only when they are used, and the system can evict them.
"""

from __future__ import annotations

import mmap
import os
from functools import cached_property
from typing import BinaryIO

import numpy as np

from plsc_mae.weights.safe_pickle import Budget
from plsc_mae.weights.tensor_builders import Bytes

CHUNK = 1 << 20


class WeightFile:
    """Weight file opened for reading.

    Attributes:
        stream: the open file; mapped arrays stay valid after it is closed.
        size: file size in bytes.
        budget: memory budget of the content.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.budget = Budget(self.size)

    @cached_property
    def _mapped(self) -> Bytes:
        return np.frombuffer(mmap.mmap(self.stream.fileno(), self.size, access=mmap.ACCESS_READ), np.uint8)

    def mapped(self, start: int, count: int) -> Bytes:
        """Return `count` bytes from offset `start` as a read-only, memory-mapped array.

        Raises:
            EOFError: the file ends before the last of these bytes.
            OSError: the file cannot be mapped.
        """
        if start + count > self.size:
            raise EOFError(f"it ends {start + count - self.size} bytes early")
        return self._mapped[start : start + count] if count else np.empty(0, np.uint8)
