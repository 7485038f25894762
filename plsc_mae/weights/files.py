"""An open weight file, what every reader reads: as a stream where it has structure, mapped where it has tensors.

Mapped bytes take memory only as they are used, and the system can drop them again.
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
    """A file opened for reading.

    Attributes:
        stream: the open file. Arrays made from it stay valid when it is closed.
        size: of the file, in bytes.
        budget: what its content may take in memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.budget = Budget(self.size)

    @cached_property
    def _mapped(self) -> Bytes:
        return np.frombuffer(mmap.mmap(self.stream.fileno(), self.size, access=mmap.ACCESS_READ), np.uint8)

    def mapped(self, start: int, count: int) -> Bytes:
        """Map `count` bytes from `start` on, read-only.

        Raises:
            EOFError: the file does not have them.
        """
        if start + count > self.size:
            raise EOFError(f"it ends {start + count - self.size} bytes early")
        return self._mapped[start : start + count] if count else np.empty(0, np.uint8)
