"""Atomic replacement of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, move the file there to `path`, else delete it.

    Readers therefore see either the old file or the complete new one. Writing in place would also corrupt arrays that
    are still memory-mapped from the old file. Missing parent folders are created. The data are not flushed to the disk
    (fsync). The file gets the permissions that the umask implies, also from libraries that create it with others.

    Raises:
        OSError: the folder cannot be created, or the file cannot be moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.touch()
        permissions = stat.S_IMODE(temporary.stat().st_mode)  # a process cannot read its umask without changing it
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != permissions:  # safetensors: 0600
            temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
