"""Record of the files of a list that could not be decoded."""

from __future__ import annotations

import mmap

import numpy as np

from plsc_mae.errors import DataError
from plsc_mae.wording import counted

CANNOT_READ = "cannot read image "  # before the path of the file
NAMED_FILES = 20  # later unreadable files are counted but not named


class UnreadableFiles:
    """Record of unreadable files; processes forked later share it.

    Data workers are forked at the start of every epoch. The shared record lets those of a training process log each
    file once.
    """

    def __init__(self, length: int) -> None:
        self._known = np.frombuffer(mmap.mmap(-1, max(length, 1)), np.uint8)  # untouched pages take no memory

    def add(self, index: int) -> bool:
        """Record a file; return True if it was not recorded before, else False."""
        known = bool(self._known[index])
        self._known[index] = 1
        return not known

    @property
    def count(self) -> int:
        """Number of recorded files."""
        return int(np.count_nonzero(self._known))


def shortened(reason: str, path: str, name: str) -> str:
    """Return the sentence `reason` about the file `path` with `name`, its path below the folder of its list.

    It is for messages that name the list.
    """
    return reason.removeprefix(CANNOT_READ).replace(path, name, 1)


def none_can_be_read(reason: str, count: int) -> DataError:
    """Return the error for a list none of whose `count` images can be read, with the reason of the first one."""
    if count == 1:
        return DataError(f"{reason}; repair or replace the file")
    return DataError(
        f"none of {counted(count, 'image')} can be read; the first one: {reason}; repair or replace the files"
    )
