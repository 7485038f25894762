"""Workers deliver their batches, and leave nothing behind however they or their parent exit."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.workers import CurrentRead, SharedBuffer, Worker, WorkerDiedError
from plsc_mae.errors import ConfigError, DataError

pytestmark = [pytest.mark.compat, pytest.mark.long]


class Numbers:
    """Data set of samples of `size` bytes, all equal to the index."""

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, key: SampleKey) -> dict[str, np.ndarray]:
        return {"image": np.full(self.size, key.index % 256, np.uint8), "skipped": np.asarray(0)}


def batches(*sizes: int) -> list[list[SampleKey]]:
    """Return the keys of batches of these sizes."""
    ends = np.cumsum([0, *sizes]).tolist()
    return [[SampleKey(0, i) for i in range(a, b)] for a, b in itertools.pairwise(ends)]


def test_buffers_keep_names_types_and_shapes():
    arrays = {
        "image": np.arange(30, dtype=np.uint8).reshape(2, 5, 3),
        "noise": np.linspace(0, 1, 7, dtype=np.float32)[::-1],
        "mask": np.array([[True], [False]]),
        "label": np.array(3),
    }
    buffer = SharedBuffer()
    for _ in range(2):
        read = buffer.read(buffer.write(arrays))
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)
        arrays["image"] = np.zeros((50, 50, 50), np.uint8)  # the second time more than before
    del read
    buffer.close()


def test_batches_of_different_sizes(monkeypatch):
    worker = Worker(Numbers(100_000), batches(1, 5, 2, 9), timeout=0)
    sizes = []
    for _ in range(4):
        batch = worker.receive()
        sizes.append(len(batch.arrays["image"]))
        assert batch.arrays["image"][0].min() == batch.arrays["image"][0].max() == sum(sizes[:-1])
        del batch
        worker.release()
    with pytest.raises(WorkerDiedError):
        worker.receive()
    worker.end()
    assert sizes == [1, 5, 2, 9]


def test_too_little_memory_is_one_sentence(monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    worker = Worker(Numbers(2**20), batches(3), timeout=0)
    with pytest.raises(DataError, match=r"3\.0 MB \(No space left.*--num_workers"):
        worker.receive()
    worker.end()


def mapped_files(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split()) > 5}


def test_batches_are_in_no_file_system():
    """So a full /dev/shm stops nothing, and no file can be left in it."""
    worker = Worker(Numbers(2**20), batches(3, 3, 3), timeout=0)
    before = mapped_files(os.getpid())  # other libraries may have a semaphore there
    worker.receive()
    mapped = mapped_files(worker.pid) - before
    worker.end()
    assert any("memfd:plsc_mae batch" in file for file in mapped)
    assert not any("/dev/shm" in file for file in mapped)
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_worker_is_what_the_system_kills_for_lack_of_memory():
    worker = Worker(Numbers(), batches(1, 1, 1), timeout=0)
    worker.receive()
    score = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (worker.pid, os.getpid())]
    worker.end()
    assert score[0] == max(500, score[1])


class Refusing(Numbers):
    def __getitem__(self, key: SampleKey) -> dict[str, np.ndarray]:
        raise ConfigError("a package is missing")


def test_errors_of_the_user_keep_their_type():
    worker = Worker(Refusing(), batches(1), timeout=0)
    with pytest.raises(ConfigError, match=r"^a package is missing$"):
        worker.receive()
    worker.end()


def test_current_read_has_the_index_and_the_time():
    current_read = CurrentRead()
    assert current_read.get().index is None
    current_read.set(2**40)
    time.sleep(0.02)
    index, seconds = current_read.get()
    assert index == 2**40
    assert 0.02 <= seconds < 60
    current_read.clear()
    assert current_read.get().index is None
    assert current_read.get().seconds < 60


_PARENT = """
import signal, sys, time
sys.path[:0] = {path!r}
signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells start children without it
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.workers import Worker
import numpy as np

class Dataset:
    def __len__(self): return 9
    def __getitem__(self, key):
        time.sleep({pause})
        return {{"image": np.zeros(9), "skipped": np.asarray(0)}}

workers = [Worker(Dataset(), [[SampleKey(0, 0)]] * 9, 0) for _ in range(2)]
print(*(worker.pid for worker in workers), flush=True)
{then}
"""
_ENDS = {
    "normal": ("", None),
    "exception": ("raise KeyError", None),
    "SIGKILL": ("time.sleep(60)", signal.SIGKILL),
    "SIGTERM": ("time.sleep(60)", signal.SIGTERM),
    "SIGINT": ("time.sleep(60)", signal.SIGINT),
}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.once
@pytest.mark.parametrize("pause", [0, 60], ids=["idle", "at_work"])
@pytest.mark.parametrize("end", _ENDS)
def test_workers_end_with_their_parent(end, pause):
    then, number = _ENDS[end]
    script = _PARENT.format(path=sys.path, then=then, pause=pause)
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if number is not None:
            assert all(alive(pid) for pid in workers)
            parent.send_signal(number)
        parent.wait(20)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    assert time.monotonic() - started < 30
