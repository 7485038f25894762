"""Base class of archives, and byte ranges of files read by `pread`.

`pread` does not move the file position, so forked workers can share the descriptors of their parent.
"""

from __future__ import annotations

import errno
import io
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import IO, Any, NamedTuple

_OPEN_FILES = 64  # processes are usually allowed 1024

_descriptors: OrderedDict[str, int] = OrderedDict()  # by path, the most recently used one last


class Stamp(NamedTuple):
    """Identity of a file's content, as far as the file system gives it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Return the stamp of a file; raise OSError if it cannot be examined."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Archive(ABC):
    """File that holds images.

    Args:
        path: the file.

    Attributes:
        stamp: identity of the content when the archive was opened.
    """

    def __init__(self, path: str) -> None:
        self.path, self.stamp = path, Stamp.of(path)

    @abstractmethod
    def open_member(self, member: str) -> tuple[IO[bytes], int]:
        """Return the content of a member as an open file, and its size in bytes.

        Raises:
            OSError: there is no such member, or the archive cannot be read.
            ValueError: the member is damaged, encrypted or in a form that is not supported.
        """

    def missing(self, member: str) -> OSError:
        """Return the error for a member that does not exist."""
        return FileNotFoundError(errno.ENOENT, "the archive has no such member", f"{self.path}/{member}")


class ByteRange(io.RawIOBase):
    """Byte range of a file, read by `pread`."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._position = descriptor, start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position and return it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer and return their number."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return the bytes from the position to the end."""
        parts = []
        while part := self._read(self._size):
            parts.append(part)
        return b"".join(parts)

    def _read(self, most: int) -> bytes:
        wanted = max(0, min(most, self._size - self._position))
        data = os.pread(self._descriptor, wanted, self._start + self._position)
        if wanted and not data:
            raise OSError(errno.EIO, "the archive is truncated: it ends within the member")
        self._position += len(data)
        return data


def descriptor_of(path: str) -> int:
    """Return an open descriptor of a file; the 64 most recently used ones stay open."""
    if path not in _descriptors:
        _descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if len(_descriptors) > _OPEN_FILES:
            os.close(_descriptors.popitem(last=False)[1])
    _descriptors.move_to_end(path)
    return _descriptors[path]


def forget_descriptor(path: str) -> None:
    """Close the descriptor of a file that has been replaced, if one is open."""
    if path in _descriptors:
        os.close(_descriptors.pop(path))
