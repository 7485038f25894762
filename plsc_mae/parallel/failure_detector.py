"""Notices that another process of the run has died, whatever this one is doing, and lets none outlive it.

Every process keeps a connection to process 0 and a thread that listens on it. Who ends says so: farewell, or what went
wrong. A connection that breaks without a word is a process that was killed; process 0 tells the others. Collectives,
kernels and waiting at the launcher's store all release the interpreter's lock, so the thread runs meanwhile.
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
GRACE, SHORT_GRACE = 2.0, 0.5  # seconds in which the main thread may come to an end by itself
JOIN_TIMEOUT = 30.0
MAX_LINE = 1 << 16
# A machine that vanishes is noticed after 25 seconds, before gloo gives up.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Peer:
    """The connection to another process, and what it is called.

    Args:
        connection: to it.
        name: of the process.
    """

    def __init__(self, connection: socket.socket, name: str = "") -> None:
        self.connection, self.name = connection, name
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: Any) -> None:
        """Send a message; nothing happens if nobody is there any more."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Wait for a message; {} when the connection has ended, {"silent": True} when nobody answers any more."""
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
    """Why a run ends.

    Attributes:
        cause: a sentence without its full stop.
        code: exit code of the processes.
        in_words: whether the process that ended first has said so itself.
    """

    cause: str
    code: int = 1
    in_words: bool = False

    @classmethod
    def told(cls, message: Mapping[str, Any], name: str) -> End:
        """Read it off the last message of a process."""
        if message.get("end"):
            return cls(str(message["end"]), int(message.get("code", 1)), bool(message.get("in_words", True)))
        if message.get("silent"):
            return cls(f"{name} does not answer any more, as when its machine or the network is down")
        return cls(f"{name} ended without a word, as when it is killed or the system lacks memory")


class Watch:
    """Listens to the other processes and ends this one when one of them has died.

    Args:
        process: which one this is.

    Attributes:
        peers: those that this process is connected to.
        end: why the run ends, once another process has told.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self.peers: list[Peer] = []
        self.end: End | None = None
        self._told, self._leaving, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._announced = False

    def start(self) -> None:
        """Begin to listen."""
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._say_how_it_ended)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def wait_for_end(self, seconds: float = GRACE / 2) -> End | None:
        """Give others time to tell why the run ends; returns what they have told."""
        self._told.wait(seconds)
        return self.end

    def farewell(self) -> None:
        """Tell the others that this process has done its work."""
        self._leave(bye=True)

    def fail(self, sentence: str, code: int) -> None:
        """Tell the others why this process ends, and with which exit code."""
        self._leave(end=f"process {self.process} on {socket.gethostname()}: {sentence}", code=code)

    def announce(self, end: End) -> None:
        """Print why the run ends, once."""
        with self._lock:
            if not self._announced:
                print(f"plsc-mae: error: {end.cause}; this process ends too", file=sys.stderr, flush=True)
            self._announced = True

    def _leave(self, **word: Any) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            for peer in list(self.peers):
                peer.send(**word)

    def _say_how_it_ended(self) -> None:
        """For programs that end without either: at the interpreter's end, which a traceback may have led to."""
        error = getattr(sys, "last_value", None)
        if error is None:
            self.farewell()
        else:
            self.fail(summary(error), 1)

    def _forget(self) -> None:
        """A forked child must not keep connections open, or they would not break when this process dies."""
        for peer in self.peers:
            peer.connection.close()
        atexit.unregister(self._say_how_it_ended)

    def _listen(self) -> None:
        raise NotImplementedError

    def _end(self, end: End) -> None:
        """End this process, unless it is about to end by itself.

        Where the other has said what was wrong, all processes may have met the same, and each is given the time to say
        so in its own words.
        """
        self.end = end
        self._told.set()
        if not end.in_words:
            self.announce(end)
        if not self._leaving.wait(GRACE if end.in_words else SHORT_GRACE):
            self.announce(end)
            leave(end.code)


class Member(Watch):
    """A process other than 0, connected to it."""

    def __init__(self, process: int, host: str, port: int, token: str) -> None:
        super().__init__(process)
        try:
            connection = socket.create_connection((host, port), timeout=JOIN_TIMEOUT)
        except OSError as error:
            raise ConfigError(
                f"process {process} cannot reach process 0 at {host}, port {port} ({error.strerror or error}); the "
                "machines of a run must be able to connect to each other, on any port"
            ) from None
        connection.settimeout(None)
        self.peers = [Peer(connection, f"process 0 on {host}")]
        self.peers[0].send(token=token, process=process, host=socket.gethostname())

    def _listen(self) -> None:
        message = self.peers[0].receive()
        if not message.get("bye") and not self._leaving.is_set():
            self._end(End.told(message, self.peers[0].name))


class Hub(Watch):
    """Process 0: all others are connected to it, and it tells them which was the first to die."""

    def __init__(self, processes: int, host: str) -> None:
        super().__init__(0)
        self.missing = set(range(1, processes))
        self.token = secrets.token_hex(16)
        try:
            self.listener = socket.create_server((host, 0))
        except OSError:  # the launcher knows this machine by an address that none of its interfaces has
            self.listener = socket.create_server(("", 0))
        self.port: int = self.listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._complete = threading.Event()

    def start(self) -> None:
        """Begin to listen, and wait for the others, to whom a farewell before they came would say nothing."""
        super().start()
        self._complete.wait(JOIN_TIMEOUT)

    def _leave(self, **word: Any) -> None:
        """Leave after the others, if they are quick: they may be waiting at the store, which this process keeps."""
        if self._leaving.is_set():
            return
        super()._leave(**word)
        deadline = time.monotonic() + GRACE
        for peer in list(self.peers):
            with contextlib.suppress(OSError, ValueError):  # it has gone, and its connection may be closed already
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
                silent = f"process {min(self.missing)} did not come forward within {JOIN_TIMEOUT:.0f} s"
                self._condemn(End(silent))
                return
            for key, _ in events:
                if key.fileobj is self.listener:
                    self._admit()
                elif self._has_ended(key.data):
                    return

    def _admit(self) -> None:
        """Let a process in that knows the token."""
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
        """Hear what a process has to say; whether it was the last word of the run."""
        message = peer.receive()
        self._selector.unregister(peer.connection)
        self.peers.remove(peer)
        if message.get("bye") or self._leaving.is_set():
            return False
        self._condemn(End.told(message, peer.name))
        return True

    def _condemn(self, end: End) -> None:
        for peer in self.peers:
            peer.send(end=end.cause, code=end.code, in_words=end.in_words)
        self._end(end)


def summary(error: BaseException) -> str:
    """An exception in one line."""
    return traceback.format_exception_only(type(error), error)[-1].strip().partition("\n")[0]


_watch: Watch | None = None


def join(process: int, processes: int, store: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Watch the other processes of a run from now on; all of them must call.

    Args:
        process: which one this is.
        processes: how many there are.
        store: the launcher's key-value store, with `get` and `set`.
        environ: where the launcher has left the address of process 0.

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


def farewell() -> None:
    """Tell the other processes, if there are any, that this one has done its work."""
    if _watch is not None:
        _watch.farewell()


def end(sentence: str, code: int) -> int:
    """End because of what a sentence says, which this process has told; returns `code` where it is alone."""
    if _watch is not None:
        _watch.fail(sentence, code)
        leave(code)
    return code


def end_by(error: Exception) -> NoReturn:
    """End by an exception that nobody expects; where it follows from the death of another process, tell that instead.

    Collectives fail with messages of their own when a connection breaks, gloo's speaks of a time-out.
    """
    if _watch is None:
        raise error
    if told := _watch.wait_for_end():
        _watch.announce(told)
        leave(told.code)
    traceback.print_exception(type(error), error, error.__traceback__)
    _watch.fail(summary(error), 1)
    leave(1)


def leave(code: int) -> NoReturn:
    """End this process at once: what Paddle does at an interpreter's end may wait for those who are gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
