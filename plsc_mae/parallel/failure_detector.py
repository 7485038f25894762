"""Detects the death of any process of a run and ends the others.

Each process holds a TCP connection to process 0 and listens on it in a thread. A process that exits sends a reason
first. If a connection drops without one, process 0 treats the peer as killed and notifies the rest. Collectives,
kernels and waits at the launcher's store release the interpreter's lock, so the thread runs at any time.
"""

from __future__ import annotations

import atexit
import contextlib
import hmac
import json
import os
import secrets
import select
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from plsc_mae.errors import ConfigError

KEY = "plsc_mae/peers"
GRACE, SHORT_GRACE = 2.0, 0.5  # seconds that the main thread has to exit on its own
JOIN_TIMEOUT = 30.0
MAX_LINE = 1 << 16
# The loss of a machine is detected after 25 seconds, before gloo's timeout of 30.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Peer:
    """Connection to another process.

    Args:
        connection: connected socket.
        name: name of the process in messages.
    """

    def __init__(self, connection: socket.socket, name: str = "") -> None:
        self.connection, self.name = connection, name
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: Any) -> None:
        """Send a message; errors of the connection are ignored."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Wait for a message; return {} at the end of the connection, {"silent": True} after a timeout."""
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
        try:
            message = json.loads(line)
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}


class End(NamedTuple):
    """Reason for the end of a run.

    Attributes:
        cause: sentence without its full stop.
        code: exit code of the processes.
        in_words: whether the first process to end sent the reason itself.
    """

    cause: str
    code: int = 1
    in_words: bool = False

    @classmethod
    def from_message(cls, message: Mapping[str, Any], name: str) -> End:
        """Return the reason that the last message of a process gives."""
        if message.get("end"):
            return cls(str(message["end"]), int(message.get("code", 1)), bool(message.get("in_words", True)))
        if message.get("silent"):
            return cls(f"{name} does not answer any more; its machine or the network may be down")
        return cls(f"{name} ended without a message; it may have been killed, or the system may be out of memory")


class Watch:
    """Listens to other processes and ends this one when one of them dies.

    Args:
        process: number of this process.

    Attributes:
        peers: connected processes.
        end: reason for the end of the run, once it is known from another process.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self.peers: list[Peer] = []
        self.end: End | None = None
        self._end_known, self._leaving, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._announced = False

    def start(self) -> None:
        """Start the listening thread."""
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._report_exit)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def wait_for_end(self, seconds: float = GRACE / 2) -> End | None:
        """Wait for another process's reason for the end of the run, and return it."""
        self._end_known.wait(seconds)
        return self.end

    def report_success(self) -> None:
        """Report to the others that this process has finished."""
        self._leave(bye=True)

    def report_failure(self, sentence: str, code: int) -> None:
        """Report to the others why this process ends and its exit code."""
        self._leave(end=f"process {self.process} on {socket.gethostname()}: {sentence}", code=code)

    def announce(self, end: End) -> None:
        """Print the reason for the end of the run, once."""
        with self._lock:
            if not self._announced:
                print(f"plsc-mae: error: {end.cause}; this process ends too", file=sys.stderr, flush=True)
            self._announced = True

    def _leave(self, **message: Any) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            for peer in list(self.peers):
                peer.send(**message)

    def _report_exit(self) -> None:
        """Report success or the last traceback when the interpreter exits without an earlier report."""
        error = getattr(sys, "last_value", None)
        if error is None:
            self.report_success()
        else:
            self.report_failure(summary(error), 1)

    def _forget(self) -> None:
        """Close the connections in a forked child, which would otherwise hold them open after this process dies."""
        for peer in self.peers:
            peer.connection.close()
        atexit.unregister(self._report_exit)

    def _listen(self) -> None:
        raise NotImplementedError

    def _end(self, end: End) -> None:
        """End this process unless it is already exiting.

        An error reported in words may have occurred in all processes, so each gets time to report its own.
        """
        self.end = end
        self._end_known.set()
        if not end.in_words:
            self.announce(end)
        if not self._leaving.wait(GRACE if end.in_words else SHORT_GRACE):
            self.announce(end)
            leave(end.code)


class Member(Watch):
    """Any process but 0; it is connected to process 0."""

    def __init__(self, process: int, host: str, port: int, token: str) -> None:
        super().__init__(process)
        try:
            connection = socket.create_connection((host, port), timeout=JOIN_TIMEOUT)
        except OSError as error:
            raise ConfigError(
                f"process {process} cannot reach process 0 at {host}, port {port} ({error.strerror or error}); the "
                "machines of a run must be able to connect to each other on any port"
            ) from None
        connection.settimeout(None)
        self.peers = [Peer(connection, f"process 0 on {host}")]
        self.peers[0].send(token=token, process=process, host=socket.gethostname())

    def _listen(self) -> None:
        message = self.peers[0].receive()
        if not message.get("bye") and not self._leaving.is_set():
            self._end(End.from_message(message, self.peers[0].name))


class Hub(Watch):
    """Process 0: all others are connected to it, and it notifies them of the first death."""

    def __init__(self, processes: int, host: str) -> None:
        super().__init__(0)
        self.missing = set(range(1, processes))
        self.token = secrets.token_hex(16)
        try:
            self.listener = socket.create_server((host, 0))
        except OSError:  # the launcher's address of this machine belongs to none of its interfaces
            self.listener = socket.create_server(("", 0))
        self.port: int = self.listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._complete = threading.Event()

    def start(self) -> None:
        """Start listening and wait until the others are connected, so that they receive an early report."""
        super().start()
        self._complete.wait(JOIN_TIMEOUT)

    def _leave(self, **message: Any) -> None:
        """Report, then give the others time to exit first, because this process hosts the store they may wait at."""
        if self._leaving.is_set():
            return
        super()._leave(**message)
        deadline = time.monotonic() + GRACE
        for peer in list(self.peers):
            with contextlib.suppress(OSError, ValueError):  # the peer has exited, and its connection may be closed
                while select.select([peer.connection], [], [], max(deadline - time.monotonic(), 0))[0]:
                    if not peer.connection.recv(4096):
                        break

    def _forget(self) -> None:
        super()._forget()
        self.listener.close()
        self._selector.close()

    def _listen(self) -> None:
        deadline = time.monotonic() + JOIN_TIMEOUT
        while (self.missing or self.peers) and not self._leaving.is_set():
            events = self._selector.select(max(deadline - time.monotonic(), 0) if self.missing else None)
            if not events and self.missing:
                self._end_all(End(f"process {min(self.missing)} did not connect within {JOIN_TIMEOUT:.0f} s"))
                return
            for key, _ in events:
                if key.fileobj is self.listener:
                    self._admit()
                elif self._has_ended(key.data):
                    return

    def _admit(self) -> None:
        """Accept a connection if the process sends the token."""
        connection, _ = self.listener.accept()
        connection.settimeout(JOIN_TIMEOUT / 3)
        peer = Peer(connection)
        hello = peer.receive()
        number = hello.get("process")
        if not hmac.compare_digest(str(hello.get("token", "")), self.token) or number not in self.missing:
            connection.close()
            return
        connection.settimeout(None)
        peer.name = f"process {number} on {hello.get('host')}"
        self.missing.remove(number)
        self.peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)
        if not self.missing:
            self._selector.unregister(self.listener)
            self.listener.close()
            self._complete.set()

    def _has_ended(self, peer: Peer) -> bool:
        """Handle a process's last message and return whether it ends the run."""
        message = peer.receive()
        self._selector.unregister(peer.connection)
        self.peers.remove(peer)
        if message.get("bye") or self._leaving.is_set():
            return False
        self._end_all(End.from_message(message, peer.name))
        return True

    def _end_all(self, end: End) -> None:
        for peer in self.peers:
            peer.send(end=end.cause, code=end.code, in_words=end.in_words)
        self._end(end)


def summary(error: BaseException) -> str:
    """Return an exception as one line."""
    return traceback.format_exception_only(type(error), error)[-1].strip().partition("\n")[0]


_watch: Watch | None = None


def join(process: int, processes: int, store: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Start to watch the other processes of a run; all of them must call.

    Args:
        process: number of this process.
        processes: number of processes.
        store: the launcher's key-value store, with `get` and `set`.
        environ: environment with the launcher's address of process 0.

    Raises:
        ConfigError: process 0 cannot be reached.
    """
    global _watch
    if _watch is not None:
        return
    place = environ.get("PADDLE_MASTER") or environ["PADDLE_TRAINER_ENDPOINTS"].partition(",")[0]
    host = place.rpartition(":")[0]
    if process == 0:
        hub = Hub(processes, host)
        store.set(KEY, f"{hub.port} {hub.token}".encode())
        _watch = hub
    else:
        port, token = bytes(store.get(KEY)).decode().split()
        _watch = Member(process, host, int(port), token)
    _watch.start()


def report_success() -> None:
    """Report to the other processes, if there are any, that this one has finished."""
    if _watch is not None:
        _watch.report_success()


def end(sentence: str, code: int) -> int:
    """End all processes because of an error that this one has printed; return `code` if there are no others."""
    if _watch is not None:
        _watch.report_failure(sentence, code)
        leave(code)
    return code


def end_by(error: Exception) -> NoReturn:
    """End all processes because of an unexpected exception.

    If another process has died, its death is reported in place of the exception: when a connection breaks, collectives
    fail with misleading messages, gloo's about a timeout.
    """
    if _watch is None:
        raise error
    if reason := _watch.wait_for_end():
        _watch.announce(reason)
        leave(reason.code)
    traceback.print_exception(type(error), error, error.__traceback__)
    _watch.report_failure(summary(error), 1)
    leave(1)


def leave(code: int) -> NoReturn:
    """End this process at once, without Paddle's cleanup, which may wait for processes that no longer exist."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
