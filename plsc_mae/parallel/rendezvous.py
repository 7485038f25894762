"""Wait before Paddle's rendezvous, which makes a process sleep for 3 seconds if it arrives before process 0."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # on Linux
_LISTENING = "0A"
MAX_WAIT, POLL = 15.0, 0.05  # seconds


def wait_for_store(process: int) -> None:
    """Wait until Paddle's store listens, if process 0 runs it on this machine; return after MAX_WAIT at the latest.

    In process 0, on other machines and on other systems than Linux this does nothing; Paddle's own attempts remain.
    """
    on_first_machine = process < int(os.environ.get("PADDLE_LOCAL_SIZE", "0"))
    if process == 0 or not on_first_machine or not _SOCKETS[0].exists():
        return
    deadline, port = time.monotonic() + MAX_WAIT, _store_port()
    with contextlib.suppress(OSError):  # a hardened container may hide the table of sockets
        while not _listens(port) and time.monotonic() < deadline:
            time.sleep(POLL)


def _store_port() -> int:
    """Return the port of the store, from the variables that Paddle reads."""
    if os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"):
        return int(os.environ["MASTER_PORT"])
    address = os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
    return int(address.rpartition(":")[2])


def _listens(port: int) -> bool:
    sockets = (line.split() for path in _SOCKETS if path.exists() for line in path.read_text().splitlines()[1:])
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == _LISTENING for fields in sockets)
