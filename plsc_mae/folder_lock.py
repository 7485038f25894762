"""Lock of an output folder against a second process that would write to it.

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
import time
from collections.abc import Iterator
from pathlib import Path

from plsc_mae.errors import FolderError

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
HELD = (errno.EAGAIN, errno.EACCES)  # errors of `lockf` if another process holds the lock
OWNER_BYTES = 300  # more than the longest name of a host
WAIT, ANNOUNCED, POLL = 10.0, 1.0, 0.1  # seconds; a restarted job may overlap the end of its predecessor


def require_unlocked(folder: Path, flag: str) -> None:
    """Wait up to WAIT seconds until no process holds the lock of an output folder, which need not exist.

    Args:
        folder: the folder.
        flag: the option that names the folder, for the message.

    Raises:
        FolderError: a process still holds the lock.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        _lock(file, folder, flag, fcntl.LOCK_SH, WAIT)
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(folder: Path, flag: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of an output folder within the context; afterwards, remove the lock file.

    If another process holds the lock, wait for it up to WAIT seconds, unless `wait` is False. If the file system has no
    locks, only warn.

    Args:
        folder: the folder, which must exist.
        flag: the option that names the folder, for the message.
        wait: False if the caller has already read the folder, since another process could change it during the wait.

    Raises:
        FolderError: another process still holds the lock, or the lock file cannot be written.
    """
    path = folder / LOCK
    try:
        file = _open_locked(path, flag, WAIT if wait else 0.0)
    except OSError as error:
        raise FolderError(f"cannot write {path}: {error.strerror}; choose another {flag}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)


def _open_locked(path: Path, flag: str, limit: float) -> int:
    """Create or open the file at `path`, lock it, write the name of this process to it, and return its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, path.parent, flag, fcntl.LOCK_EX, limit)
            if _is_at(path, file):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the previous owner removed the file after it was opened here


def _lock(file: int, folder: Path, flag: str, kind: int, limit: float) -> None:
    """Lock an open file; raise FolderError if another process still holds the lock after `limit` seconds."""
    started, announced = time.monotonic(), False
    while True:
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in HELD:
                if kind == fcntl.LOCK_EX:
                    logger.warning(
                        "%s is on a file system without locks (%s), so a second command that writes there is not "
                        "noticed",
                        *(folder, error.strerror),
                    )
                return
        owner = os.pread(file, OWNER_BYTES, 0).decode(errors="replace") or "another process"
        waited = time.monotonic() - started
        if waited >= limit:
            still = f", also after {limit:g} s" if limit else ""
            raise FolderError(
                f"{flag} {folder} is in use by {owner}{still}; wait until it ends, stop it, or choose another {flag}"
            )
        if waited >= ANNOUNCED and not announced:
            announced = True
            logger.info("%s is in use by %s; waiting up to %g s for its end", folder, owner, limit)
        time.sleep(POLL)


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
