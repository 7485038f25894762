"""Stacks of all threads of this process, for the report of a hang."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from pathlib import Path

WRITE_SECONDS = 5.0  # a report must not wait for a file system that hangs
STDERR = 2


def write(title: str, path: Path | None) -> None:
    """Write the line `title` and the Python stacks of all threads to stderr and to the file `path`, if any.

    The call returns after at most WRITE_SECONDS. Errors of the file system are ignored.
    """
    thread = threading.Thread(target=_write, args=(title, path), name="stacks", daemon=True)
    thread.start()
    thread.join(WRITE_SECONDS)


def _write(title: str, path: Path | None) -> None:
    with contextlib.suppress(OSError):
        os.write(STDERR, f"{title}\n".encode())
        faulthandler.dump_traceback(STDERR)
    if path is not None:
        with contextlib.suppress(OSError), open(path, "w") as file:
            print(title, file=file, flush=True)
            faulthandler.dump_traceback(file)
            os.fsync(file.fileno())
