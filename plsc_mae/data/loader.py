"""Batches as Paddle tensors, decoded by worker processes; the data path's interface to training.

Failures travel from the workers as data, because Paddle (2.6 and 3.3 alike) does not hand them over: the caller gets
a SystemError about a blocking queue, or with `num_workers=0` waits for ever.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.util import Finalize
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.data.randomness import SampleKey
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transforms import Sample
from plsc_mae.errors import DataError

_BATCHES_AHEAD = 2  # per worker: one ready while the next is made
_BATCHES_ON_THE_WAY = 3  # two in Paddle's reader buffer, one in use
_SHARED_MEMORY = "/dev/shm"

logger = logging.getLogger(__name__)


class KeyedDataset(Protocol):
    """A data set whose samples are asked for by key and count the files "skipped" for them."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...


class BatchLoader:
    """The batches of an epoch, from the sampler's position on; each iteration starts workers and ends them.

    Attributes:
        skipped: files passed over so far because they could not be decoded.
    """

    def __init__(self, dataset: KeyedDataset, sampler: EpochBatchSampler, num_workers: int) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.skipped = 0
        self._stopping = multiprocessing.RawValue(ctypes.c_bool, False)  # seen by the workers

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of tensors, the sample's arrays stacked along a new first axis.

        Raises:
            DataError: a file could not be decoded, or whatever else the data set complains of.
        """
        for batch in self._from_workers() if self.num_workers else self._in_process():
            if failure := batch.pop("failure", None):
                raise failure
            self.skipped += batch.pop("skipped")
            yield batch

    def _in_process(self) -> Iterator[dict[str, Any]]:
        for keys in self.sampler:
            batch = collate([self.dataset[key] for key in keys])
            yield {name: paddle.to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in batch.items()}

    def _from_workers(self) -> Iterator[dict[str, Any]]:
        self._stopping.value = False
        batches = iter(self._paddle_loader)
        try:
            yield from batches
        except GeneratorExit:
            # The caller stops early, which Paddle does not expect: it would leave the workers until the process ends,
            # or, told to end them, the shared memory of a batch under way for good. So receive what is under way.
            self._stopping.value = True
            for _ in batches:
                pass
            raise
        except SystemError as error:  # all Paddle says; what the data set raises takes another way
            raise DataError(
                "a data worker died, as when the system kills it for lack of memory; "
                "lower --num_workers or --batch_size, or free memory"
            ) from error
        finally:
            batches._try_shutdown_all()  # Paddle does so after the last batch only, not when a worker has died

    @functools.cached_property
    def _paddle_loader(self) -> paddle.io.DataLoader:
        return paddle.io.DataLoader(
            _WorkerDataset(self.dataset, self._stopping),
            batch_sampler=_WorkerBatches(self.sampler, self._stopping),
            collate_fn=collate,
            num_workers=self.num_workers,
            prefetch_factor=_BATCHES_AHEAD,
            use_shared_memory=self._shared_memory_suffices(),
            worker_init_fn=_start_worker,
        )

    def _shared_memory_suffices(self) -> bool:
        keys = next(iter(self.sampler), None)
        if keys is None:
            return True
        sample = self.dataset[keys[0]]
        batches = self.num_workers * _BATCHES_AHEAD + _BATCHES_ON_THE_WAY
        processes = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))  # of this node, set by paddle.distributed.launch
        needed = sum(array.nbytes for array in sample.values()) * self.sampler.batch_size * batches * processes
        free = shutil.disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else 0
        if free < needed:
            logger.warning(
                "%s has %d MB free but the data workers need %d MB, so batches go through pipes, which is slower; "
                "enlarge it (docker run --shm-size) or lower --num_workers",
                *(_SHARED_MEMORY, free // 2**20, -(-needed // 2**20)),
            )
        return free >= needed


def build_loader(dataset: KeyedDataset, sampler: EpochBatchSampler, *, num_workers: int) -> BatchLoader:
    """Return the batches that `sampler` asks of `dataset`, the same ones for any `num_workers`.

    Args:
        dataset: maps SampleKeys to named arrays of fixed shape.
        sampler: decides on order and position; set its position before each epoch.
        num_workers: processes that decode; 0 decodes in the caller's own, between the steps.
    """
    return BatchLoader(dataset, sampler, num_workers)


def collate(samples: Sequence[Sample | Exception]) -> dict[str, Any]:
    """Stack samples name by name; "skipped" becomes one plain number, "failure" holds what a sample raised."""
    arrays: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Exception):
            # Paddle takes a batch without any array for the end of the data.
            return {"failure": sample, "array": np.zeros(1, np.uint8)}
        arrays.append(sample)
    batch: dict[str, Any] = {name: np.stack([sample[name] for sample in arrays]) for name in arrays[0]}
    return batch | {"skipped": int(batch["skipped"].sum())}


class _WorkerBatches:
    """The sampler's batches, until the loader is stopping."""

    def __init__(self, sampler: EpochBatchSampler, stopping: ctypes.c_bool) -> None:
        self._sampler = sampler
        self._stopping = stopping

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return itertools.takewhile(lambda _: not self._stopping.value, self._sampler)


class _WorkerDataset:
    """A data set that returns what its samples raise, for `collate` to pass on, and makes none when stopping."""

    def __init__(self, dataset: KeyedDataset, stopping: ctypes.c_bool) -> None:
        self._dataset = dataset
        self._stopping = stopping

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: SampleKey) -> Sample | Exception:
        if self._stopping.value:
            return InterruptedError("the caller wants no more batches")
        try:
            return self._dataset[key]
        except DataError as error:
            return DataError(str(error))
        except Exception:  # a bug: its traceback would be lost on the way to the caller
            return RuntimeError(f"in a data worker:\n{traceback.format_exc()}")


def _start_worker(_worker_id: int) -> None:
    """Leave Ctrl-C to the parent; end with it, even if it is killed, whether idle or at work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    Finalize(None, _end_if_orphaned, args=(parent,), exitpriority=-10)  # last: a queue's own finalizer has -5


def _end_with_parent(parent: int) -> None:
    while True:
        _end_if_orphaned(parent)
        time.sleep(1)


def _end_if_orphaned(parent: int) -> None:
    if os.getppid() != parent:
        # Nobody is left to receive, and so remove, the batches in shared memory. Exec ends this process's other threads
        # at once, so that none of them adds another.
        os.execlp("sh", "sh", "-c", f"rm -f {_SHARED_MEMORY}/paddle_{os.getpid()}_*")
