"""Batches do not depend on the number of workers, failures reach the caller, and no worker is left behind."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae.data.imagefolder import ImageDataset, find_images
from plsc_mae.data.loader import BatchLoader, build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import RandomCropFlip
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.long]


def make_loader(
    folder: Path, num_workers: int, *, batch_size: int = 4, transform=None, worker_timeout: float = 60, **options
) -> BatchLoader:
    images = find_images(folder, "train")
    dataset = ImageDataset(images, transform or RandomCropFlip((16, 16)), seed=1, **options)
    sampler = EpochBatchSampler(len(images), batch_size, 0, 1, seed=1)
    return build_loader(dataset, sampler, num_workers=num_workers, worker_timeout=worker_timeout)


def arrays(batches) -> list[dict[str, np.ndarray]]:
    return [{name: np.asarray(values) for name, values in batch.items()} for batch in batches]


def assert_same(actual: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(autouse=True)
def worker_pids(monkeypatch):
    """Record the workers that a test starts, and check at its end that none is left."""
    pids: list[int] = []
    start = BaseProcess.start

    def recording_start(process: BaseProcess) -> None:
        start(process)
        pids.append(process.pid)

    monkeypatch.setattr(BaseProcess, "start", recording_start)
    yield pids
    gc.collect()
    assert multiprocessing.active_children() == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_batch_is_tensors_of_stacked_samples(image_folder):
    batches = list(make_loader(image_folder, 0))
    assert len(batches) == 5
    assert batches[0].keys() == {"image", INDEX, "label"}
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
    batches = make_loader(image_folder, num_workers)
    for _ in range(2):
        for _batch in batches:
            break
        assert multiprocessing.active_children() == []
    assert len(worker_pids) == 2 * num_workers
    assert_same(arrays(batches), arrays(make_loader(image_folder, 0)))


def test_stopping_early_does_not_make_the_rest_of_the_epoch(image_folder):
    def slow(image, rng):
        time.sleep(0.4)
        return {"image": np.zeros((4, 4), np.uint8)}

    batches = iter(make_loader(image_folder, 2, batch_size=1, transform=slow))
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 1  # the other 21 batches would take 2 workers 4 seconds


def test_an_error_of_the_caller_ends_the_workers(image_folder):
    def step() -> None:
        for _ in make_loader(image_folder, 2):
            raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError):
        step()
    gc.collect()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_reaches_the_caller_as_one_sentence(image_folder, num_workers):
    bad = image_folder / "train" / "dog" / "03.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        list(make_loader(image_folder, num_workers))
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batches_before_the_bad_image_arrive(image_folder):
    third = list(make_loader(image_folder, 0).sampler)[2][1].index
    Path(find_images(image_folder, "train").path(third)).write_bytes(b"")
    batches = iter(make_loader(image_folder, 2))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(DataError, match="the file is empty"):
        next(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_files_are_counted(image_folder, num_workers, caplog):
    for name in ("cat/01", "dog/07", "dog/08"):
        (image_folder / "train" / f"{name}.jpg").write_bytes(b"no image")
    batches = make_loader(image_folder, num_workers, batch_size=11, bad_image="skip")
    loaded = arrays(batches)
    assert batches.skipped == 3
    indices = np.concatenate([batch[INDEX] for batch in loaded]).tolist()
    assert len(indices) == 22
    assert not {1, 18, 19} & set(indices)
    list(batches)
    assert batches.skipped == 6
    assert [record.message[:8] for record in caplog.records if record.name.endswith("loader")] == ["3 images"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bug_keeps_its_traceback(image_folder, num_workers):
    def broken(image, rng):
        return {"image": np.zeros(40)[image.height - 9]}  # fails for the tallest picture

    failure = IndexError if num_workers == 0 else RuntimeError
    with pytest.raises(failure, match="is out of bounds for axis 0 with size 40") as caught:
        list(make_loader(image_folder, num_workers, transform=broken))
    if num_workers:
        assert "in broken" in str(caught.value)


@pytest.mark.parametrize("moment", [0, 9])
def test_killed_workers_are_replaced_and_nothing_changes(image_folder, moment, worker_pids, caplog):
    batches, received = iter(make_loader(image_folder, 2, batch_size=1, worker_timeout=0)), []
    for number, batch in enumerate(batches):
        received.append(batch)
        if number == moment:
            os.kill(worker_pids[0], signal.SIGKILL)
            os.kill(worker_pids[1], signal.SIGKILL)
    assert_same(arrays(received), arrays(make_loader(image_folder, 0, batch_size=1)))
    assert len(worker_pids) == 4
    assert caplog.text.count("starting a replacement") == 2
    assert "SIGKILL" in caplog.text


def test_workers_that_keep_dying_are_a_data_error(image_folder, worker_pids):
    def deadly(image, rng):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"worker \d+ .*SIGKILL .*\.jpg, after 3 others .*--num_workers.*--batch_size"):
        list(make_loader(image_folder, 1, transform=deadly))
    assert len(worker_pids) == 4


class Trap:
    """Transform that crops, but calls `act` for one file."""

    def __init__(self, path: Path, act) -> None:
        self.path, self.act, self.crop = str(path), act, RandomCropFlip((16, 16))

    def __call__(self, image, rng):
        if image.path == self.path:
            self.act()
        return self.crop(image, rng)


def crash() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # Paddle's handler prints pages
    os.kill(os.getpid(), signal.SIGSEGV)


FATES = {"crashes": crash, "hangs": lambda: time.sleep(60)}


@pytest.mark.parametrize("fate", FATES)
def test_a_file_that_crashes_or_hangs_its_worker_is_named(image_folder, fate):
    path = image_folder / "train" / "dog" / "03.jpg"
    message = {
        "crashes": rf"SIGSEGV .*{path}.*--bad_image skip",
        "hangs": rf"{path} for \d s .*--worker_timeout.*--bad_image skip",
    }
    with pytest.raises(DataError, match=message[fate]):
        list(make_loader(image_folder, 2, transform=Trap(path, FATES[fate]), worker_timeout=0.5))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("fate", FATES)
def test_a_file_that_crashes_or_hangs_its_worker_is_skipped_like_a_bad_one(image_folder, fate, caplog):
    path = image_folder / "train" / "dog" / "03.jpg"
    batches = make_loader(
        image_folder, 2, transform=Trap(path, FATES[fate]), worker_timeout=0.5, bad_image="skip", batch_size=3
    )
    received = arrays(batches) + arrays(batches)  # the first epoch twice: the file stays marked as bad
    assert batches.skipped == 2
    assert caplog.text.count("starting a replacement") == 1
    path.write_bytes(b"no image")
    assert_same(received, 2 * arrays(make_loader(image_folder, 0, bad_image="skip", batch_size=3)))


def test_a_worker_that_stops_between_two_files_is_replaced(image_folder, worker_pids, caplog):
    batches = iter(make_loader(image_folder, 2, batch_size=2, worker_timeout=0.5))
    received = [next(batches)]
    time.sleep(0.3)  # both workers have filled their buffers
    os.kill(worker_pids[0], signal.SIGSTOP)
    received += batches
    assert_same(arrays(received), arrays(make_loader(image_folder, 0, batch_size=2)))
    assert "--worker_timeout" in caplog.text
    assert caplog.text.count("starting a replacement") == 1


def test_waiting_for_the_caller_is_no_hang(image_folder, worker_pids):
    batches = iter(make_loader(image_folder, 2, batch_size=2, worker_timeout=0.2))
    received = [next(batches)]
    time.sleep(0.6)
    received += batches
    assert len(received) == 11
    assert len(worker_pids) == 2


def test_without_workers_a_hang_is_warned_of(image_folder, caplog):
    path = image_folder / "train" / "dog" / "03.jpg"
    list(make_loader(image_folder, 0, transform=Trap(path, lambda: time.sleep(0.5)), worker_timeout=0.2))
    (record,) = caplog.records
    assert all(text in record.message for text in (str(path), "0 s", "--worker_timeout 0.2", "--num_workers 1"))


def test_a_replacement_that_cannot_be_started_is_an_error(image_folder, monkeypatch, worker_pids):
    batches = iter(make_loader(image_folder, 2, batch_size=1))
    next(batches)

    def refuse(process: BaseProcess) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(BaseProcess, "start", refuse)
    os.kill(worker_pids[1], signal.SIGKILL)
    with pytest.raises(DataError, match=r"Cannot allocate memory.*--num_workers"):
        list(batches)


def test_a_worker_that_cannot_be_started_leaves_none_behind(image_folder, monkeypatch):
    start, started = BaseProcess.start, []

    def refuse_the_third(process: BaseProcess) -> None:
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(process)
        start(process)

    monkeypatch.setattr(BaseProcess, "start", refuse_the_third)
    with pytest.raises(DataError, match=r"Resource temporarily unavailable; .*--num_workers.*ulimit -u"):
        list(make_loader(image_folder, 3))
    assert len(started) == 2
    assert multiprocessing.active_children() == []
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}


def test_signals_for_the_whole_job_are_left_to_the_parent(image_folder, worker_pids):
    batches = iter(make_loader(image_folder, 2, batch_size=1))
    received = [next(batches)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for pid in worker_pids:
            os.kill(pid, number)
    received += batches
    assert_same(arrays(received), arrays(make_loader(image_folder, 0, batch_size=1)))
    assert len(worker_pids) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_that_vanish_during_the_epoch(image_folder, num_workers):
    strict = make_loader(image_folder, num_workers)
    batches = make_loader(image_folder, num_workers, batch_size=1, bad_image="skip")
    iterator = iter(batches)
    received = [next(iterator)]
    for path in (image_folder / "train" / "cat").iterdir():
        path.unlink()
    received += iterator
    assert len(received) == 22
    assert batches.skipped > 0
    with pytest.raises(DataError, match=r"/cat/.*: No such file or directory; .*--bad_image skip"):
        list(strict)
