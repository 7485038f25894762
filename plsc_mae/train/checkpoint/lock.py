"""Lock of an output folder against a second run that would write to it.

The lock is a POSIX record lock on a hidden file. The kernel releases it when the process that holds it ends, also after
SIGKILL, and child processes such as loader workers do not inherit it. Closing any descriptor of the file releases the
lock too, so only this module may open the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from plsc_mae.errors import CheckpointError

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
HELD = (errno.EAGAIN, errno.EACCES)  # errors of `lockf` if another process holds the lock
OWNER_BYTES = 300  # more than the longest name of a host


def require_unlocked(folder: Path) -> None:
    """Raise CheckpointError if a process holds the lock of an output folder, which need not exist."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        _lock(file, folder, fcntl.LOCK_SH)
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder within the context; afterwards its file is removed.

    A file system without locks only causes a warning.

    Raises:
        CheckpointError: another process holds the lock, or its file cannot be written.
    """
    path = folder / LOCK
    try:
        file = _open_locked(path)
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another --output_dir") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)


def _open_locked(path: Path) -> int:
    """Return the descriptor of the locked file, which is still at `path`."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, path.parent, fcntl.LOCK_EX)
            if _is_at(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its owner removed it between the opening and the locking


def _lock(file: int, folder: Path, kind: int) -> None:
    """Lock an open file; raise CheckpointError if another process holds the lock."""
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            if kind == fcntl.LOCK_EX:
                logger.warning(
                    "%s is on a file system without locks (%s), so a second run there is not noticed",
                    *(folder, error.strerror),
                )
            return
        owner = os.pread(file, OWNER_BYTES, 0).decode(errors="replace") or "another process"
        raise CheckpointError(
            f"--output_dir {folder} is in use by a run, {owner}; wait until it ends, stop it, or choose another "
            "--output_dir"
        ) from None


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
