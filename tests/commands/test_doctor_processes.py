"""The doctor's sums over processes: threads stand in for them here, and one real launch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

from plsc_mae.commands import doctor, doctor_processes
from plsc_mae.commands.doctor_findings import Finding, error
from plsc_mae.commands.doctor_processes import examine_processes

pytestmark = pytest.mark.compat
ROOT = Path(__file__).parents[2]


class ThreadWorld:
    """A World of threads, which sums as processes do."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, shared: list) -> None:
        self.rank, self.size, self._meeting, self._shared = rank, size, meeting, shared

    def sum(self, values):
        self._shared[self.rank] = values
        self._meeting.wait(20)
        total = self.add(self._shared)
        self._meeting.wait(20)
        return total

    def add(self, values):
        return paddle.add_n([value.clone() for value in values])

    def barrier(self) -> None:
        self._meeting.wait(20)


class WrongWorld(ThreadWorld):
    """Loses one number of one process."""

    def add(self, values):
        total = super().add(values)
        if total.dtype == paddle.int64 and total.shape == [1000]:
            total[7] -= values[1][7]
        return total


def examine(kind: type[ThreadWorld], size: int) -> list[list[str | Finding]]:
    meeting, shared = threading.Barrier(size), [None] * size
    with ThreadPoolExecutor(size, thread_name_prefix="rank") as threads:
        runs = [
            threads.submit(lambda r: list(examine_processes(kind(r, size, meeting, shared))), r) for r in range(size)
        ]
        return [run.result(60) for run in runs]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(doctor_processes, "SIZES", (2**12, 2**20))
    monkeypatch.setattr(doctor_processes, "_SECONDS_PER_SIZE", 0.01)
    monkeypatch.setattr(doctor_processes, "_time_product", lambda: 0.25)


@pytest.mark.parametrize("size", [2, 3])
def test_sound_processes(size):
    for told in examine(ThreadWorld, size):
        assert [type(item) for item in told] == [str] * (size + 4)
        assert [f"rank {rank}: " in told[rank] and f" process {os.getpid()}" in told[rank] for rank in range(size)]
        assert told[size] == f"  sums of float32 over {size} processes are exact"
        assert told[size + 1] == f"  sums of int64 over {size} processes are exact"
        assert told[size + 2].startswith("  all-reduce of 4 KiB: ")
        assert told[size + 3].startswith("  all-reduce of 1 MiB: ")
        assert told[size + 3].endswith(" MB/s")


def test_wrong_sums_are_found_by_all():
    for told in examine(WrongWorld, 2):
        (found,) = [item for item in told if isinstance(item, Finding)]
        assert str(found).startswith("! sums of int64 over the processes are wrong (2 of 2000 numbers): ")


def test_the_slowest_is_named(monkeypatch):
    seconds = iter([0.1, 0.1, 0.5])
    lock = threading.Lock()

    def timed() -> float:
        with lock:
            return next(seconds)

    monkeypatch.setattr(doctor_processes, "_time_product", timed)
    for told in examine(ThreadWorld, 3):
        (found,) = [item for item in told if isinstance(item, Finding)]
        assert "is the slowest, 5.0 times as slow as the median" in found.text
        assert not found.stops


def test_different_installations_are_found(monkeypatch):
    monkeypatch.setattr(doctor_processes.platform, "python_version", lambda: threading.current_thread().name)
    for told in examine(ThreadWorld, 2):
        (found,) = [item for item in told if isinstance(item, Finding)]
        assert found.stops
        assert "install the same versions everywhere" in found.text


@pytest.mark.parametrize("others", [0, 1])
def test_an_error_in_one_process_is_an_error_in_all(monkeypatch, others):
    world = SimpleNamespace(size=2, sum=lambda values: values + others)
    monkeypatch.setattr("plsc_mae.parallel.world.World", lambda _: world)
    monkeypatch.setattr(doctor_processes, "examine_processes", lambda _: iter(["a line"]))
    told = list(doctor._examine_launch([]))
    assert told[0] == "a line"
    assert [str(item)[:18] for item in told[1:]] == ["! 1 of 2 processes"] * others
    assert list(doctor._examine_launch([error("own")])) == ["a line"]  # it has reported already


@pytest.mark.once
@pytest.mark.long
def test_a_real_launch(tmp_path):
    command = [sys.executable, "-m", "plsc_mae", "launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}  # a trap of Paddle's launcher
    run = subprocess.run(
        [*command, "doctor", "--distributed"], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(2):
        told = (tmp_path / f"workerlog.{rank}").read_text()
        assert "sums of float32 over 2 processes are exact" in told
        assert "sums of int64 over 2 processes are exact" in told
        assert "all-reduce of 64 MiB" in told
        assert "rank 1: " in told
