"""Connection between two processes of a run, which carries lines of JSON."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
from typing import Any

MAX_LINE = 1 << 16
# The loss of a machine is detected after 25 seconds, before gloo's timeout of 30.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Peer:
    """Connection to another process."""

    def __init__(self, connection: socket.socket, name: str = "") -> None:
        self.connection, self.name = connection, name
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: Any) -> None:
        """Send a message; errors of the connection are ignored.

        After a call of `latest`, this does not wait: a message for which the buffer lacks room is lost, and may spoil
        the next one.
        """
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Wait for a message and return it.

        Returns {"silent": True} after a timeout of the connection, and {} if it closes or the message is not valid.
        """
        try:
            while b"\n" not in self._received:
                data = self.connection.recv(4096)
                if not data or len(self._received) > MAX_LINE:
                    return {}
                self._received += data
        except TimeoutError:
            return {"silent": True}
        except OSError:
            return {}
        line, _, self._received = self._received.partition(b"\n")
        return _parsed(line)

    def latest(self) -> dict[str, Any] | None:
        """Return the newest message that has arrived, {} if it is not valid, None if no message has; do not wait.

        The connection does not block from then on, so that a stopped process at its other end cannot stop this one.
        """
        self.connection.setblocking(False)
        with contextlib.suppress(OSError):
            while data := self.connection.recv(1 << 16):
                self._received += data
        *lines, self._received = self._received.split(b"\n")
        return _parsed(lines[-1]) if lines else None

    def continue_on_message(self) -> None:
        """Let the system resume this process, if it is stopped, when a message arrives or the connection closes.

        A process stopped by SIGSTOP would otherwise outlive its run. Linux only.
        """
        if hasattr(fcntl, "F_SETSIG"):
            fcntl.fcntl(self.connection, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(self.connection, fcntl.F_SETSIG, signal.SIGCONT)
            fcntl.fcntl(self.connection, fcntl.F_SETFL, fcntl.fcntl(self.connection, fcntl.F_GETFL) | os.O_ASYNC)


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the message in a line, {} if it is not valid."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # deeply nested
        return {}
    return message if isinstance(message, dict) else {}
