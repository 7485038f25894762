"""Supervisor that runs checks in separate processes, so that a crash or a hang fails one check only.

The supervisor computes nothing on the GPU. The process of the checks appends each result to a file. If it ends early
or exceeds the time limit of a check, that check has failed, or is "slow" on a busy machine, and a new process continues
with the next check.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from plsc_mae.gpu_check.results import Outcome, Result, read
from plsc_mae.runtime import available_cores
from plsc_mae.wording import counted

LEAST = 5.0  # seconds that must be left to start a process
BUSY = 1.5  # average number of running and waiting processes per CPU core
REMEDY = "on a slow or busy machine, give a larger --gpu_minutes"
_POLL = 0.1

Command = Callable[[Path, Sequence[str]], Sequence[str]]  # (file of results, names of checks) -> command line


def checks_command(*, gpu: bool) -> Command:
    """Return the function that makes the command line of a process of checks."""
    device = "gpu" if gpu else "cpu"
    return lambda path, names: [sys.executable, "-m", "plsc_mae.gpu_check", str(path), device, *names]


def collectives_command(processes: int) -> Command:
    """Return the function that makes the command line of the check of collectives, by `plsc-mae launch`."""

    def command(path: Path, names: Sequence[str]) -> Sequence[str]:
        launch = ["launch", "--nproc_per_node", str(processes), "--log_dir", str(path.parent / "processes")]
        return [sys.executable, "-m", "plsc_mae", *launch, "doctor", "--gpu", "--report", str(path)]

    return command


def supervise(command: Command, limits: Mapping[str, float], deadline: float) -> Iterator[Result]:
    """Run checks and yield the result of each as soon as it is known, in the order of `limits`.

    Args:
        command: makes the command line of a process that runs checks.
        limits: time limit of each check in seconds, by name.
        deadline: time of `time.monotonic` in seconds at which a running check is ended and no other one starts.
    """
    pending = list(limits)
    while pending:
        if deadline - time.monotonic() < LEAST:
            yield from (Result(name, "skipped", f"the time for all checks is used up; {REMEDY}") for name in pending)
            return
        with tempfile.TemporaryDirectory() as folder:
            for result in _attempt(command, tuple(pending), limits, deadline, Path(folder)):
                pending.remove(result.check)
                yield result


def _attempt(
    command: Command, names: Sequence[str], limits: Mapping[str, float], deadline: float, folder: Path
) -> Iterator[Result]:
    """Run checks in one process until all are done or one crashes or takes too long; yield one or more results."""
    path, output = folder / "results.jsonl", folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(command(path, names), stdout=file, stderr=file, start_new_session=True)
    known, started = 0, time.monotonic()
    try:
        while known < len(names):
            ended = process.poll() is not None
            results = read(path)
            if len(results) > known:
                yield from results[known:]
                known, started = len(results), time.monotonic()
                continue
            name, waited = names[known], time.monotonic() - started
            if ended:
                yield Result(name, "failed", _describe_end(process.returncode, output), seconds=waited)
                return
            if waited > limits[name] or time.monotonic() > deadline:
                yield _late(name, waited)
                return
            time.sleep(_POLL)
    finally:
        _end(process)


def _late(name: str, waited: float) -> Result:
    """Return the result of a check that did not end in time: "slow" on a busy machine, else "failed"."""
    load, cores = os.getloadavg()[0], available_cores()
    outcome: Outcome = "slow" if load > BUSY * cores else "failed"
    summary = (
        f"not finished within the {waited:.0f} s that it had, with a load of {load:.1f} on {counted(cores, 'core')}"
    )
    return Result(name, outcome, f"{summary}; its process was ended; {REMEDY}", {"load": load, "cores": cores}, waited)


def _describe_end(code: int, output: Path) -> str:
    """Return a clause about the end of a process, with its last line of output."""
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"its process {how}: {last[:300]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what is left of its process group.

    The process gets SIGTERM and 5 s to exit, in which a launcher ends the processes that it started. Then the group
    gets SIGKILL.
    """
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
