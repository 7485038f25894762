"""Stacks of all threads of this process, for the report of a hang."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from pathlib import Path

WRITE_SECONDS = 5.0  # a report must not wait for a file system that hangs
STDERR = 2


def write(path: Path | None) -> None:
    """Write the Python stacks of all threads to stderr and to the file `path`, if any.

    Writing is abandoned after WRITE_SECONDS. Errors of the file system are ignored.
    """
    thread = threading.Thread(target=_write, args=(path,), name="stacks", daemon=True)
    thread.start()
    thread.join(WRITE_SECONDS)


def _write(path: Path | None) -> None:
    with contextlib.suppress(OSError):
        faulthandler.dump_traceback(STDERR)
    if path is not None:
        with contextlib.suppress(OSError), open(path, "w") as file:
            faulthandler.dump_traceback(file)
            file.flush()
            os.fsync(file.fileno())
