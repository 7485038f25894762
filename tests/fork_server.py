"""Python programs as processes of their own, without the seconds that each would take to import Paddle.

`python fork_server.py SOCKET` imports Paddle and this package once, computes nothing, and forks a process for every
request. A forked process has the words, environment, folder, files and signals of the request, runs the program as
`__main__`, and ends as every interpreter does. `ForkServer` is the other side, for the tests.

Start a real interpreter where the point is the start itself: settings that Paddle reads when it is imported, other than
FLAGS; another PYTHONPATH; Paddle's launcher; programs that must do without Paddle.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
LENGTH = struct.Struct("!I")  # precedes a request
MAX_START = 120.0  # seconds in which the server must be ready


class Process:
    """A forked process, with the methods of `subprocess.Popen` that tests use.

    Args:
        connection: connection to the server, which sends the process's number and then its exit code, a line each.
        stdout: its output, if nothing else was requested.
        stderr: its errors, if they are separate.
    """

    def __init__(self, connection: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self._lines = connection.makefile("r")
        self._connection = connection
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to the pipes."""
        texts = ["", ""]

        def read(place: int, stream: IO[str]) -> None:
            texts[place] = stream.read()
            stream.close()

        streams = enumerate((self.stdout, self.stderr))
        threads = [threading.Thread(target=read, args=(i, stream), daemon=True) for i, stream in streams if stream]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal to the process if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Launch:
    """Processes that train together, as Paddle's launcher would have started them.

    Args:
        processes: the processes, in order of their numbers.
        logs: files with what each has written.
    """

    def __init__(self, processes: Sequence[Process], logs: Sequence[Path]) -> None:
        self.processes, self.logs = processes, logs

    @property
    def returncode(self) -> int | None:
        """Exit code of the first process that failed, or 0; None while one runs."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        """Return the exit code, or None while a process runs."""
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of all processes and return what they have written; kill those left after the timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for process in self.processes:
                process.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        finally:
            for process in self.processes:
                process.kill()
        return "".join(log.read_text(errors="replace") for log in self.logs), ""


class ForkServer:
    """Connection to a server, which is started with the first program.

    Args:
        folder: an empty folder for its socket; the path must be short.
    """

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "s")
        self._server: subprocess.Popen[bytes] | None = None

    def start(
        self,
        words: Sequence[object],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        session: bool = False,
    ) -> Process:
        """Start a program.

        Args:
            words: the words after `python`: a program, or `-m` and a module, or `-c` and code, and their arguments.
            env: its environment; None for that of this process.
            cwd: its folder; None for that of this process.
            stdout: PIPE, an open file, or None for that of this process.
            stderr: the same, or STDOUT.
            session: lead a session, as the processes of the launcher do, whose output has no buffer either.
        """
        request = {"words": [str(word) for word in words], "env": dict(os.environ if env is None else env)}
        request |= {"cwd": os.path.abspath(cwd or os.getcwd()), "session": session}
        data = json.dumps(request).encode()
        out, out_end = _stream(stdout, sys.__stdout__)
        err, err_end = (None, os.dup(out_end)) if stderr == subprocess.STDOUT else _stream(stderr, sys.__stderr__)
        connection = self._connect()
        socket.send_fds(connection, [LENGTH.pack(len(data))], [out_end, err_end])
        connection.sendall(data)
        os.close(out_end)
        os.close(err_end)
        return Process(connection, out, err)

    def run(self, words: Sequence[object], timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; the options are those of `start`."""
        process = self.start(words, **options)
        try:
            out, err = process.communicate(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess([str(word) for word in words], process.returncode or 0, out, err)

    def launch(
        self,
        words: Sequence[object],
        processes: int,
        logs: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> Launch:
        """Start a program in several processes, with the environment and the log files of Paddle's launcher."""
        logs.mkdir(parents=True, exist_ok=True)
        ports = _free_ports(processes + 1)
        paths = [logs / f"workerlog.{number}" for number in range(processes)]
        started = []
        for number, path in enumerate(paths):
            environ = dict(os.environ if env is None else env) | peer_environment(number, ports)
            with open(path, "w") as log:
                options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "session": True}
                started.append(self.start(words, env=environ, cwd=cwd, **options))
        return Launch(started, paths)

    def close(self) -> None:
        """End the server and all of its processes."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()

    def _connect(self) -> socket.socket:
        if self._server is None:
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            self._server = subprocess.Popen(
                [sys.executable, __file__, self._path], stdin=subprocess.PIPE, env=environ, start_new_session=True
            )
        deadline = time.monotonic() + MAX_START
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._path)
                return connection
            except OSError:
                connection.close()
                assert self._server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.01)


def peer_environment(number: int, ports: Sequence[int]) -> dict[str, str]:
    """Return the variables that Paddle's launcher gives a process; the first port is that of the store."""
    count, endpoints = len(ports) - 1, [f"127.0.0.1:{port}" for port in ports[1:]]
    return {
        "OMP_NUM_THREADS": "1",
        "PADDLE_CURRENT_ENDPOINT": endpoints[number],
        "PADDLE_DISTRI_BACKEND": "gloo",
        "PADDLE_GLOBAL_RANK": str(number),
        "PADDLE_GLOBAL_SIZE": str(count),
        "PADDLE_LOCAL_RANK": str(number),
        "PADDLE_LOCAL_SIZE": str(count),
        "PADDLE_MASTER": f"127.0.0.1:{ports[0]}",
        "PADDLE_NNODES": "1",
        "PADDLE_RANK_IN_NODE": str(number),
        "PADDLE_TRAINERS_NUM": str(count),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_TRAINER_ID": str(number),
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def _stream(wanted: Any, inherited: Any) -> tuple[IO[str] | None, int]:
    """Return the end of a stream that a test reads, if any, and the one that the process writes to."""
    if wanted == subprocess.PIPE:
        reader, writer = os.pipe()
        return os.fdopen(reader, errors="replace"), writer
    return None, os.dup((inherited if wanted is None else wanted).fileno())


# ---------------------------------------------------------------------------------------------------- the server


def preload() -> None:
    """Import what programs need."""
    import gc
    import importlib
    import pkgutil

    import plsc_mae

    for module in pkgutil.walk_packages(plsc_mae.__path__, "plsc_mae."):
        if not module.name.startswith(("plsc_mae.__main__", "plsc_mae.parity.references")):  # these need torch
            importlib.import_module(module.name)
    importlib.import_module("visualdl")
    importlib.import_module("PIL.Image").init()  # the modules of all formats
    gc.freeze()  # at its end a forked process would otherwise visit, and so copy, all of this: 0.6 s instead of 0.2


def serve(path: str) -> dict[str, Any]:
    """Fork a process for each request. Returns in the forked processes only, with the request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for source in (listener, ended, sys.stdin):
            selector.register(source, selectors.EVENT_READ)
        while True:
            sources = [key.fileobj for key, _ in selector.select()]
            if sys.stdin in sources:  # closed: the tests are over
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            if ended in sources:
                ended.recv(4096)
                report(running)
            if listener in sources:
                connection, _ = listener.accept()
                head, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 2)
                (size,) = LENGTH.unpack(head)
                request: dict[str, Any] = json.loads(connection.makefile("rb").read(size))
                if pid := os.fork():
                    for stream in streams:
                        os.close(stream)
                    connection.sendall(b"%d\n" % pid)
                    running[pid] = connection
                    continue
                break
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for unused in (listener, ended, wake, connection, *running.values()):
        unused.close()
    connect_streams(*streams)
    return request


def report(running: dict[int, socket.socket]) -> None:
    """Send the exit codes of the processes that have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with running.pop(pid) as connection, contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def connect_streams(stdout: int, stderr: int) -> None:
    """Make these files the standard streams of this process, with nothing to read."""
    null = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(file, place)
        os.close(file)


def become(request: dict[str, Any], original: Mapping[str, str]) -> None:
    """Take over the environment and the folder of a request; `original` is the server's environment at its start."""
    import paddle

    environ: dict[str, str] = request["env"]
    for name, value in environ.items():
        if name.startswith("FLAGS_") and os.environ.get(name) != value:  # read when Paddle was imported
            paddle.set_flags({name: type(paddle.get_flags(name)[name])(json.loads(value))})
    for name in set(original) - set(environ):
        os.environ.pop(name, None)
    os.environ.update(environ)
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = sys.__stdout__ = new_stream(1, "strict", write_through=request["session"])
    sys.stderr = sys.__stderr__ = new_stream(2, "backslashreplace", write_through=request["session"])
    if request["session"]:
        os.setsid()


def new_stream(file: int, errors: str, *, write_through: bool) -> io.TextIOWrapper:
    """Open stdout or stderr as an interpreter does at its start: the server's streams were opened on other files."""
    lines = file == 2 or os.isatty(file)
    binary = open(file, "wb", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(binary, "utf-8", errors, line_buffering=lines, write_through=write_through)


def run_program(words: list[str]) -> None:
    """Run a program as `python WORDS` does."""
    import runpy

    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    start = dict(os.environ)
    preload()
    wanted = serve(sys.argv[1])
    become(wanted, start)
    run_program(wanted["words"])
