"""Batches are the same for any number of workers, failures arrive whole, and no worker outlives its use."""

from __future__ import annotations

import gc
import glob
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae.data import loader
from plsc_mae.data.imagefolder import ImageDataset, find_images
from plsc_mae.data.loader import BatchLoader, build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transforms import RandomCropFlip
from plsc_mae.errors import DataError

pytestmark = pytest.mark.compat


def make_loader(folder: Path, num_workers: int, *, batch_size: int = 4, transform=None, **options) -> BatchLoader:
    images = find_images(folder, "train")
    dataset = ImageDataset(images, transform or RandomCropFlip((16, 16)), seed=1, **options)
    return build_loader(dataset, EpochBatchSampler(len(images), batch_size, 0, 1, seed=1), num_workers=num_workers)


def arrays(batches) -> list[dict[str, np.ndarray]]:
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]


def assert_same(actual: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def batches_in_shared_memory(pids: list[int]) -> list[str]:
    """The files that these workers put there, whatever other processes of this machine do."""
    return [name for pid in pids for name in glob.glob(f"/dev/shm/paddle_{pid}_*")]


def wait_until(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture(autouse=True)
def worker_pids(monkeypatch):
    """The workers a test has started; none of them, nor their shared memory, may be there after it."""
    pids: list[int] = []
    start = BaseProcess.start

    def recording_start(process: BaseProcess) -> None:
        start(process)
        pids.append(process.pid)

    monkeypatch.setattr(BaseProcess, "start", recording_start)
    yield pids
    assert multiprocessing.active_children() == []
    gc.collect()
    assert wait_until(lambda: not batches_in_shared_memory(pids))


def test_batch_is_tensors_of_stacked_samples(image_folder):
    batches = list(make_loader(image_folder, 0))
    assert len(batches) == 5
    assert batches[0].keys() == {"image", "index", "label"}
    assert isinstance(batches[0]["image"], paddle.Tensor)
    assert batches[0]["image"].shape == [4, 16, 16, 3]
    assert batches[0]["image"].dtype == paddle.uint8
    assert batches[0]["label"].shape == [4]
    assert batches[0]["label"].dtype == paddle.int64


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("backend", ["pil", "opencv"])
def test_batches_do_not_depend_on_the_workers(image_folder, num_workers, backend):
    alone, workers = (
        make_loader(image_folder, 0, backend=backend),
        make_loader(image_folder, num_workers, backend=backend),
    )
    for epoch in (0, 1):
        alone.sampler.set_position(epoch)
        workers.sampler.set_position(epoch)
        assert_same(arrays(workers), arrays(alone))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_position_resumes_mid_epoch(image_folder, num_workers):
    whole = make_loader(image_folder, 0)
    whole.sampler.set_position(3)
    expected = arrays(whole)
    resumed = make_loader(image_folder, num_workers)
    resumed.sampler.set_position(3, batches_done=2)
    assert_same(arrays(resumed), expected[2:])
    assert len(resumed) == 5
    resumed.sampler.set_position(3, batches_done=5)
    assert list(resumed) == []


def test_two_processes_get_what_one_gets(image_folder):
    images = find_images(image_folder, "train")
    dataset = ImageDataset(images, RandomCropFlip((16, 16)), seed=1)

    def load(batch_size: int, rank: int, world_size: int) -> list[dict[str, np.ndarray]]:
        return arrays(build_loader(dataset, EpochBatchSampler(22, batch_size, rank, world_size, seed=1), num_workers=0))

    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(load(4, 0, 2), load(4, 1, 2), strict=True)
    ]
    assert_same(joined, load(8, 0, 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopping_early_ends_the_workers(image_folder, num_workers, worker_pids):
    """Paddle alone leaves them, with their shared memory, until the process ends."""
    batches = make_loader(image_folder, num_workers)
    for _ in range(2):
        for batch in batches:
            first = batch
            break
        assert multiprocessing.active_children() == []
    del first, batch
    assert len(worker_pids) == 2 * num_workers
    assert wait_until(lambda: not batches_in_shared_memory(worker_pids))
    assert_same(arrays(batches), arrays(make_loader(image_folder, 0)))


def test_stopping_early_first_receives_what_is_under_way(image_folder, monkeypatch):
    """Ending Paddle's workers before that lost, in one stop of fifty, a batch and its shared memory for good."""
    reader = paddle.io.dataloader.dataloader_iter._DataLoaderIterMultiProcess
    shut_down, under_way = reader._try_shutdown_all, []

    def recording_shut_down(self, *timeout):
        under_way.append(self._batches_outstanding)
        shut_down(self, *timeout)

    monkeypatch.setattr(reader, "_try_shutdown_all", recording_shut_down)
    batches = iter(make_loader(image_folder, 2, batch_size=1))
    next(batches)
    batches.close()
    assert under_way
    assert set(under_way) == {0}


def test_stopping_early_does_not_make_the_rest_of_the_epoch(image_folder):
    def slow(image, rng):
        time.sleep(0.3)
        return {"image": np.zeros((4, 4), np.uint8)}

    batches = iter(make_loader(image_folder, 2, batch_size=2, transform=slow))
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 2  # the other 10 batches of 0.6 s would take 2 workers 3 seconds


def test_an_error_of_the_caller_ends_the_workers(image_folder):
    def step() -> None:
        for _ in make_loader(image_folder, 2):
            raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError):
        step()
    assert wait_until(lambda: multiprocessing.active_children() == [])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_reaches_the_caller_as_one_sentence(image_folder, num_workers):
    bad = image_folder / "train" / "dog" / "03.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        list(make_loader(image_folder, num_workers))
    assert str(caught.value).startswith(f"cannot read image {bad}: it is not an image of a known format; ")
    assert "\n" not in str(caught.value)


def test_batches_before_the_bad_image_arrive(image_folder):
    third = list(make_loader(image_folder, 0).sampler)[2][1].index
    Path(find_images(image_folder, "train").path(third)).write_bytes(b"")
    batches = iter(make_loader(image_folder, 2))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(DataError, match="the file is empty"):
        next(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_files_are_counted(image_folder, num_workers):
    for name in ("cat/01", "dog/07", "dog/08"):
        (image_folder / "train" / f"{name}.jpg").write_bytes(b"no image")
    batches = make_loader(image_folder, num_workers, batch_size=11, bad_image="skip")
    loaded = arrays(batches)
    assert batches.skipped == 4  # dog/07 is followed by another bad one, so it passes over two
    assert sorted(np.concatenate([batch["index"] for batch in loaded]).tolist()).count(20) == 3
    list(batches)
    assert batches.skipped == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bug_keeps_its_traceback(image_folder, num_workers):
    def broken(image, rng):
        return {"image": np.zeros(40)[image.height - 9]}  # fails for the tallest picture

    failure = IndexError if num_workers == 0 else RuntimeError
    with pytest.raises(failure, match="is out of bounds for axis 0 with size 40") as caught:
        list(make_loader(image_folder, num_workers, transform=broken))
    if num_workers:
        assert "in broken" in str(caught.value)


def test_small_shared_memory_is_said_and_avoided(image_folder, monkeypatch, caplog, worker_pids):
    usage = namedtuple("usage", "total used free")(64, 0, 1000)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: usage)
    batches = make_loader(image_folder, 2)
    with caplog.at_level(logging.WARNING):
        received = []
        for batch in batches:
            assert not batches_in_shared_memory(worker_pids)
            received.append({name: tensor.numpy() for name, tensor in batch.items()})
        list(batches)
    assert [record.message for record in caplog.records if "shm" in record.message] == [
        "/dev/shm has 0 MB free but the data workers need 1 MB, so batches go through pipes, which is slower; "
        "enlarge it (docker run --shm-size) or lower --num_workers"
    ]
    assert_same(received, arrays(make_loader(image_folder, 0)))


def test_stopping_early_ends_workers_that_write_to_full_pipes(image_folder, monkeypatch):
    """A megabyte per batch does not fit into a pipe, so the workers are still sending when the caller stops."""
    monkeypatch.setattr(BatchLoader, "_shared_memory_suffices", lambda _: False)
    batches = iter(make_loader(image_folder, 2, transform=RandomCropFlip((320, 320))))
    next(batches)
    start = time.monotonic()
    batches.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 10


def test_a_killed_worker_is_a_data_error(image_folder, worker_pids):
    batches = iter(make_loader(image_folder, 2, batch_size=1))
    next(batches)
    # Paddle's handler would raise wherever the main thread happens to be; without it, it looks every 5 seconds.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.kill(worker_pids[0], signal.SIGKILL)
        with pytest.raises(DataError, match=r"a data worker died.*--num_workers"):
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, handler)
    worker_pids.pop(0)  # what it was sending is freed when this process ends


_CHILD = """
import multiprocessing, signal, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells start children without it
from plsc_mae.data.imagefolder import ImageDataset, find_images
from plsc_mae.data.loader import build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transforms import RandomCropFlip

dataset = ImageDataset(find_images({folder!r}, "train"), RandomCropFlip((16, 16)), seed=1)
for batch in build_loader(dataset, EpochBatchSampler(22, 2, 0, 1, seed=1), num_workers=2):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_killed_parent(image_folder, how):
    script = _CHILD.format(path=sys.path, folder=str(image_folder))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(_alive(pid) for pid in workers)
        parent.send_signal(how)
        parent.wait(20)
    assert wait_until(lambda: not any(_alive(pid) for pid in workers))
    assert wait_until(lambda: not batches_in_shared_memory(workers))
