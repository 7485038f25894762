"""Failure detector: if any process of a run dies, it ends the others.

Every other process holds a TCP connection to process 0, and a thread at either end listens on it. Before a process
exits, it sends its reason. If a connection drops without one, the process at the other end counts as killed; process 0
notifies the others. Collectives, kernels and waits at the launcher's store release the global interpreter lock, so the
thread runs during them, too. A second connection carries the reports of the hang detector.
"""

from __future__ import annotations

import atexit
import contextlib
import hmac
import os
import secrets
import select
import selectors
import socket
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from plsc_mae.errors import ConfigError
from plsc_mae.parallel import activity, stacks
from plsc_mae.parallel.peer import Peer

KEY = "plsc_mae/peers"
GRACE, SHORT_GRACE = 2.0, 0.5  # seconds in which the main thread can exit before the listening thread ends it
JOIN_TIMEOUT = 30.0


class End(NamedTuple):
    """Reason for the end of a run."""

    cause: str  # sentence without its period
    code: int = 1  # exit code for the processes
    # True if the cause is an error that a process reported; False if it was detected from outside
    in_words: bool = False
    # number of the last update that the hanging process has reported, 0 without a report; None if the run does not
    # hang. If it is a number, every process writes its stacks.
    hung_at: int | None = None

    @classmethod
    def from_message(cls, message: Mapping[str, Any], name: str) -> End:
        """Return the reason according to the last message of the process `name`."""
        if message.get("end"):
            in_words = bool(message.get("in_words", True))
            return cls(str(message["end"]), int(message.get("code", 1)), in_words, message.get("hung_at"))
        if message.get("silent"):
            return cls(f"{name} does not answer any more; its machine or the network may be down")
        return cls(f"{name} ended without a message; it may have been killed, or the system may be out of memory")

    def message(self) -> dict[str, Any]:
        """Return the message from which `from_message` makes this reason."""
        return {"end": self.cause, "code": self.code, "in_words": self.in_words, "hung_at": self.hung_at}


class Watch(ABC):
    """Monitor of other processes that ends this process when one of them dies or reports an error.

    Attributes:
        peers: connections to other processes.
        reports: connections for the reports of the hang detector, by process index.
        stacks_folder: folder of the stacks that this process writes if the run hangs; None writes to stderr only.
        describe_suspect: returns a sentence about a process that has made no progress for a while; "" without one.
        end: reason for which the run ends; None until it is known, and if this process itself reports an error.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self.peers: list[Peer] = []
        self.reports: dict[int, Peer] = {}
        self.stacks_folder: Path | None = None
        self.describe_suspect: Callable[[], str] = str
        self.end: End | None = None
        self._end_known, self._leaving, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._announced = False

    def start(self) -> None:
        """Start the listening thread, and register the report that this process sends when it exits."""
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._report_exit)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def wait_for_end(self, seconds: float = GRACE / 2) -> End | None:
        """Wait up to `seconds` until `end` is known, and return it; None if it is not."""
        self._end_known.wait(seconds)
        return self.end

    def report_success(self) -> None:
        """Report to the connected processes that this process has finished; only its first report is sent."""
        self._leave(bye=True)

    def report_failure(self, sentence: str, code: int) -> None:
        """Report to the connected processes why this process ends, and its exit code; only its first report is sent."""
        self._leave(end=f"process {self.process} on {socket.gethostname()}: {sentence}", code=code)

    def announce(self, end: End) -> None:
        """Print the reason for the end of the run to stderr; later calls do nothing."""
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
        """Report the uncaught exception that ends the interpreter, or else success, unless a report was sent before."""
        error = getattr(sys, "last_value", None)
        if error is None:
            self.report_success()
        else:
            self.report_failure(summary(error), 1)

    def _forget(self) -> None:
        """Close the connections in a forked child, where they would stay open after the parent process dies."""
        for peer in [*self.peers, *self.reports.values()]:
            peer.connection.close()
        atexit.unregister(self._report_exit)

    @abstractmethod
    def _listen(self) -> None:
        """Watch the connections until the run ends."""

    @abstractmethod
    def end_all(self, end: End) -> None:
        """Send the reason to the other processes, and end this one."""

    def _end(self, end: End) -> None:
        """End this process unless it begins to exit within SHORT_GRACE seconds, or GRACE seconds if `end.in_words`.

        An error that one process reported may have occurred in all of them, so each gets the time to report it, too.
        """
        if not end.in_words:
            self.announce(end)
        if end.hung_at is not None:
            write_stacks(end.hung_at, self.stacks_folder, self.process)
        self.end = end
        self._end_known.set()
        if not self._leaving.wait(GRACE if end.in_words else SHORT_GRACE):
            self.announce(end)
            leave(end.code)


class Member(Watch):
    """Watch of any process other than 0, connected to process 0.

    Args:
        process: index of this process.
        host: address of process 0.
        port: port of process 0's `Hub`.
        token: token of that `Hub`, which proves that this process belongs to the run.
        pid: system's id of process 0.

    Raises:
        ConfigError: process 0 cannot be reached.
    """

    def __init__(self, process: int, host: str, port: int, token: str, pid: int) -> None:
        super().__init__(process)
        self._hub_name = f"process 0 on {host} (pid {pid})"
        self.peers = [self._connect(host, port, token, reports=False)]
        self.reports = {0: self._connect(host, port, token, reports=True)}

    def _connect(self, host: str, port: int, token: str, *, reports: bool) -> Peer:
        """Return a new connection to process 0; `reports` marks the one for the hang detector."""
        try:
            connection = socket.create_connection((host, port), timeout=JOIN_TIMEOUT)
        except OSError as error:
            raise ConfigError(
                f"process {self.process} cannot reach process 0 at {host}, port {port} ({error.strerror or error}); "
                "the machines of a run must be able to connect to each other on any port"
            ) from None
        connection.settimeout(None)
        peer = Peer(connection, self._hub_name)
        peer.send(token=token, process=self.process, host=socket.gethostname(), pid=os.getpid(), reports=reports)
        if not reports:
            peer.continue_on_message()
        return peer

    def end_all(self, end: End) -> None:
        """Send the reason to process 0, which notifies the others, and end this process."""
        self.peers[0].send(**end.message())
        self._end(end)

    def _listen(self) -> None:
        message = self.peers[0].receive()
        if not message.get("bye") and not self._leaving.is_set():
            self._end(End.from_message(message, self.peers[0].name))


class Hub(Watch):
    """Watch of process 0, which is connected to all others and notifies them of the first death or error.

    Args:
        processes: number of processes in the run.
        host: address at which to listen; all addresses of the machine if this one is not local.
    """

    def __init__(self, processes: int, host: str) -> None:
        super().__init__(0)
        self.missing = {(number, reports) for number in range(1, processes) for reports in (False, True)}
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
        """Start listening and wait up to JOIN_TIMEOUT seconds for the others, so that an early report reaches them."""
        super().start()
        self._complete.wait(JOIN_TIMEOUT)

    def _leave(self, **message: Any) -> None:
        """Send the report, then wait up to GRACE seconds for the others to exit: they may need this process's store."""
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
                self.end_all(End(f"process {min(self.missing)[0]} did not connect within {JOIN_TIMEOUT:.0f} s"))
                return
            for key, _ in events:
                if key.fileobj is self.listener:
                    self._admit()
                elif self._has_ended(key.data):
                    return

    def _admit(self) -> None:
        """Accept a connection; close it unless it sends the token, and a process and purpose that are still missing."""
        connection, _ = self.listener.accept()
        connection.settimeout(JOIN_TIMEOUT / 3)
        peer = Peer(connection)
        hello = peer.receive()
        token = str(hello.get("token", "")).encode(errors="replace")  # JSON can hold lone surrogates
        if not hmac.compare_digest(token, self.token.encode()):
            connection.close()
            return
        number, reports = int(hello["process"]), bool(hello.get("reports"))
        if (number, reports) not in self.missing:
            connection.close()
            return
        connection.settimeout(None)
        peer.name = f"process {number} on {hello.get('host')} (pid {hello.get('pid')})"
        self.missing.remove((number, reports))
        if reports:
            self.reports[number] = peer
        else:
            self.peers.append(peer)
            self._selector.register(connection, selectors.EVENT_READ, peer)
            peer.continue_on_message()
        if not self.missing:
            self._selector.unregister(self.listener)
            self.listener.close()
            self._complete.set()

    def _has_ended(self, peer: Peer) -> bool:
        """Handle the last message of a process, or the loss of its connection, and return whether the run ends."""
        message = peer.receive()
        self._selector.unregister(peer.connection)
        self.peers.remove(peer)
        if message.get("bye") or self._leaving.is_set():
            return False
        end = End.from_message(message, peer.name)
        if end.hung_at is None and (suspect := self.describe_suspect()):
            end = end._replace(cause=f"{end.cause}; {suspect}")
        self.end_all(end)
        return True

    def end_all(self, end: End) -> None:
        """Send the reason to the other processes, and end this one."""
        for peer in list(self.peers):
            peer.send(**end.message())
        self._end(end)


def summary(error: BaseException) -> str:
    """Return an exception as `Type: message`, with the first line of the message, if any."""
    return traceback.format_exception_only(type(error), error)[-1].strip().partition("\n")[0]


_watch: Watch | None = None


def join(process: int, processes: int, store: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Start to watch the other processes of a run, unless this process already does; all processes must call.

    Args:
        process: index of this process.
        processes: number of processes.
        store: the launcher's key-value store, by which process 0 publishes its port.
        environ: environment with the launcher's address of process 0.

    Raises:
        ConfigError: process 0 cannot be reached from this process.
    """
    global _watch
    if _watch is not None:
        return
    place = environ.get("PADDLE_MASTER") or environ["PADDLE_TRAINER_ENDPOINTS"].partition(",")[0]
    host = place.rpartition(":")[0]
    if process == 0:
        hub = Hub(processes, host)
        store.set(KEY, f"{hub.port} {hub.token} {os.getpid()}".encode())
        _watch = hub
    else:
        port, token, pid = bytes(store.get(KEY)).decode().split()
        _watch = Member(process, host, int(port), token, int(pid))
    _watch.start()


def current() -> Watch | None:
    """Return the watch of this process; None before `join`, and in a run of one process."""
    return _watch


def write_stacks(update: int, folder: Path | None, process: int) -> None:
    """Write the stacks of this process to stderr and to `hang-{update}-rank{process}.txt` in `folder`, if any."""
    title = f"process {process} on {socket.gethostname()} (pid {os.getpid()}), {activity.current}:"
    stacks.write(title, None if folder is None else folder / f"hang-{update}-rank{process}.txt")


def report_success() -> None:
    """Report to the other processes, if any, that this process has finished."""
    if _watch is not None:
        _watch.report_success()


def end(sentence: str, code: int) -> int:
    """Report an error to the other processes, which end too, and leave with `code`; a single process returns `code`.

    A process that has not called `join` yet counts as single.

    Args:
        sentence: message of the error, which this process has already printed.
        code: exit code.
    """
    if _watch is not None:
        _watch.report_failure(sentence, code)
        leave(code)
    return code


def end_by(error: Exception) -> NoReturn:
    """End all processes because of the unexpected exception `error`; a single process, see `end`, raises it.

    If another process has ended the run, its reason is printed instead. Collectives whose connection breaks fail with
    misleading messages; gloo, for example, reports a timeout.
    """
    if _watch is None:
        raise error
    if reason := _watch.wait_for_end():
        _watch.announce(reason)
        leave(reason.code)
    traceback.print_exception(type(error), error, error.__traceback__)
    cause = summary(error)
    if suspect := _watch.describe_suspect():
        cause += f"; {suspect}"
        print(f"plsc-mae: error: {cause}", file=sys.stderr, flush=True)
    _watch.report_failure(cause, 1)
    leave(1)


def end_hung(end: End, folder: Path) -> NoReturn:
    """End the only process of a run that hangs: print the reason, write the stacks, and leave.

    Args:
        end: reason, with `hung_at`.
        folder: folder of the stacks.
    """
    print(f"plsc-mae: error: {end.cause}", file=sys.stderr, flush=True)
    write_stacks(end.hung_at or 0, folder, 0)
    leave(end.code)


def leave_group(code: int) -> None:
    """End this process at once with `code` if it has joined others (`join`); otherwise return.

    This skips Python's normal shutdown: after about 1 in 100 successful runs of two processes on the CPU, Paddle 3.3's
    cleanup crashed with SIGSEGV, so the run's exit code reported a failure.
    """
    if _watch is not None:
        leave(code)


def leave(code: int) -> NoReturn:
    """End this process at once. Paddle's cleanup is skipped, because it may wait for processes that no longer exist."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
