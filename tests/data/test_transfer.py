"""On a GPU, the next batch is copied while the current one is computed; batches, errors and the end are unchanged."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time

import numpy as np
import paddle
import pytest

from plsc_mae.data import loader as loader_module
from plsc_mae.data import transfer
from plsc_mae.data.loader import BatchLoader, build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transfer import INDEX, OneAhead, device_batch, to_device
from plsc_mae.errors import DataError

pytestmark = pytest.mark.compat


class Numbers:
    """Data set of 12 numbers; the sample `bad` cannot be read, and "skipped" is 1 for every fourth."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __len__(self):
        return 12

    def __getitem__(self, key):
        if key.index == self.bad:
            raise DataError(f"sample {key.index} is bad")
        numbers = {"image": key.index, INDEX: key.index, "skipped": key.index % 4 == 0}
        return {name: np.asarray(number, np.int64) for name, number in numbers.items()}


def make_loader(bad: int | None = None, num_workers: int = 2) -> BatchLoader:
    return build_loader(Numbers(bad), EpochBatchSampler(12, 2, 0, 1, 0, shuffle=False), num_workers=num_workers)


@pytest.fixture
def copied(monkeypatch):
    """Pretend that the device is a GPU; return the list of what is copied to it."""
    values = []

    def copy(array):
        values.append(array.tolist())
        return paddle.to_tensor(array)

    monkeypatch.setattr(loader_module, "copies_asynchronously", lambda: True)
    monkeypatch.setattr(transfer, "to_device", copy)
    yield values
    assert multiprocessing.active_children() == []


def transferred(loader: BatchLoader, copied: list) -> bool:
    """Wait for the workers, and return whether `transfer_next` copies a batch."""
    before, deadline = len(copied), time.monotonic() + 20
    while not loader._pool.is_ready() and loader._pool.next_number < len(loader):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    loader.transfer_next()
    return len(copied) > before


def test_one_batch_is_copied_ahead(copied):
    loader, threads = make_loader(), threading.active_count()
    batches = []
    for number, batch in enumerate(loader):
        assert copied == [[2 * i, 2 * i + 1] for i in range(number + 1)]
        assert transferred(loader, copied) == (number < 5)
        assert not transferred(loader, copied)  # a second one waits for its turn
        assert loader.skipped == (number + 2) // 2  # those of the batches that were returned
        assert threading.active_count() == threads
        batches.append(batch)
    assert np.concatenate([batch[INDEX] for batch in batches]).tolist() == list(range(12))
    assert [batch["image"].tolist() for batch in batches] == copied
    assert loader.skipped == 3
    loader.transfer_next()
    assert len(copied) == 6


def test_an_epoch_continues_at_its_position(copied):
    loader = make_loader()
    for start in (3, 5, 6):
        copied.clear()
        loader.sampler.set_position(1, start)
        found = []
        for batch in loader:
            transferred(loader, copied)
            found += batch[INDEX].tolist()
        assert found == list(range(2 * start, 12))


def test_an_error_arrives_with_its_batch(copied):
    loader, seen = make_loader(bad=7), []

    def read() -> None:
        for batch in loader:
            transferred(loader, copied)
            seen.extend(batch[INDEX].tolist())

    with pytest.raises(DataError, match="sample 7 is bad"):
        read()
    assert seen == list(range(6))
    assert loader._batches is None


def test_ending_early_drops_the_batch_ahead(copied):
    loader = make_loader()
    for _ in loader:
        assert transferred(loader, copied)
        break
    assert (loader._pool, loader._batches) == (None, None)
    assert [batch[INDEX].tolist() for batch in loader] == [[2 * i, 2 * i + 1] for i in range(6)]


def test_a_batch_that_is_not_ready_is_left_to_the_next_iteration(copied, monkeypatch):
    loader = make_loader(num_workers=1)
    for number, _ in enumerate(loader):
        with monkeypatch.context() as patch:
            patch.setattr(type(loader._pool.workers[0]), "is_ready", lambda _: False)
            loader.transfer_next()
        assert len(copied) == number + 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_changes_without_a_gpu(monkeypatch, num_workers):
    monkeypatch.setattr(OneAhead, "take", take_on_request := Requests(OneAhead.take))
    loader = make_loader(num_workers=num_workers)
    for number, _ in enumerate(loader, start=1):
        time.sleep(0.02)
        loader.transfer_next()
        assert take_on_request.count == number


class Requests:
    """Method that counts its calls."""

    def __init__(self, method) -> None:
        self.method, self.count = method, 0

    def __get__(self, instance, owner):
        def call():
            self.count += 1
            return self.method(instance)

        return call


def test_a_gpu_copies_from_pinned_memory_without_a_wait(monkeypatch):
    calls = []

    class Pinned:
        def cuda(self, **options):
            calls.append(options)
            return "on the device"

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", lambda: "pinned")  # the CPU build has none
    monkeypatch.setattr(paddle, "to_tensor", lambda array, place: calls.append((array, place)) or Pinned())
    assert device_batch({"image": "pixels", INDEX: np.arange(2)}).keys() == {"image", INDEX}
    assert to_device("pixels") == "on the device"
    assert calls == [("pixels", "pinned"), {"blocking": False}] * 2


def test_arrays_of_the_host_are_copied_on_the_host():
    arrays = {"image": np.arange(3), INDEX: np.arange(3)}
    batch = device_batch(arrays)
    arrays[INDEX][:] = 7
    assert batch[INDEX].tolist() == batch["image"].tolist() == [0, 1, 2]
    assert isinstance(batch["image"], paddle.Tensor)


def test_exceptions_are_raised_in_order():
    def items():
        yield 1
        yield 2
        raise KeyError("third")

    ahead = OneAhead(items())
    ahead.take()
    ahead.take()
    assert next(ahead) == 1
    assert next(ahead) == 2
    ahead.take()
    for _ in range(2):
        with pytest.raises(KeyError, match="third"):
            next(ahead)
    assert list(OneAhead(iter(range(3)))) == [0, 1, 2]
    assert list(itertools.islice(OneAhead(itertools.count()), 2)) == [0, 1]
