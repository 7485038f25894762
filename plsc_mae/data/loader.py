"""Loads batches as Paddle tensors with worker processes.

A worker that dies is replaced by a new one that continues at the same batch; repeated deaths at one batch raise an
error. A batch depends on the seed, the epoch and the sample indices alone, so the batches equal those of an undisturbed
run, except for a file that is marked as bad.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, TypeVar

from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transfer import OneAhead, copies_asynchronously, device_batch
from plsc_mae.data.workers import (
    CollatedBatch,
    CurrentRead,
    KeyedDataset,
    Reading,
    ReadsFiles,
    Worker,
    WorkerDiedError,
    WorkerTimeoutError,
    collate,
    read_batch,
)
from plsc_mae.errors import DataError, flag, remedies
from plsc_mae.wording import counted

__all__ = ["WORKER_TIMEOUT", "BatchLoader", "KeyedDataset", "build_loader", "collate"]

WORKER_TIMEOUT = 300.0  # seconds
_MAX_RESTARTS = 3  # consecutive restarts without a batch in between
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")

Taken = TypeVar("Taken")

logger = logging.getLogger(__name__)


class TransferredBatch(NamedTuple):
    """Batch on the device, and the number of its samples that replace undecodable files."""

    tensors: dict[str, Any]
    skipped: int


class BatchLoader:
    """Iterable over the batches of an epoch, starting at the sampler's position; each iteration starts its own workers.

    Attributes:
        skipped: number of undecodable files replaced by others so far; a file counts again in every epoch.
    """

    def __init__(
        self, dataset: KeyedDataset, sampler: EpochBatchSampler, num_workers: int, worker_timeout: float
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.worker_timeout = worker_timeout
        self.skipped = 0
        self._reported = 0
        self._pool: WorkerPool | None = None  # of the iteration that is under way
        self._batches: OneAhead[TransferredBatch] | None = None

    def __len__(self) -> int:
        """Return the number of batches of this process in a whole epoch, regardless of the position."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches of tensors: the arrays of the samples stacked along a new first axis.

        Raises:
            DataError: a file cannot be decoded or takes too long, or workers cannot be started, lack memory or keep
                dying.
            Exception: of other types: the data set raises it; in a worker, all but UserError become RuntimeError.
        """
        before = self.skipped
        with closing(self._from_workers() if self.num_workers else self._in_process()) as batches:
            self._batches = OneAhead(batches)
            for batch in self._batches:
                self.skipped += batch.skipped
                yield batch.tensors
        self._report_skipped(self.skipped - before)

    def transfer_next(self) -> None:
        """Start the transfer of the next batch if the device is a GPU and the batch is ready.

        Call this while a GPU computes, before waiting for it. The next iteration returns the batch, or raises the error
        of its worker, as usual. This method waits only if the worker has died and is replaced.
        """
        if copies_asynchronously() and self._batches is not None and self._pool is not None and self._pool.is_ready():
            self._batches.take()

    def _in_process(self) -> Generator[TransferredBatch, None, None]:
        current_read = CurrentRead()
        with _warning_about_slow_reads(current_read, self.worker_timeout, self.dataset):
            for keys in self.sampler:
                yield _transfer(read_batch(self.dataset, keys, current_read))

    def _from_workers(self) -> Generator[TransferredBatch, None, None]:
        pool = WorkerPool(self.dataset, copy.copy(self.sampler), self.num_workers, self.worker_timeout)
        self._pool = pool
        try:
            yield from pool.batches(_transfer)
        finally:
            self._pool = self._batches = None
            pool.end()

    def _report_skipped(self, count: int) -> None:
        """Log the number of files skipped in an epoch if it exceeds the last one logged."""
        if count > self._reported:
            self._reported = count
            logger.warning("%s of this epoch could not be read: replaced by other images", counted(count, "image"))


def _transfer(batch: CollatedBatch) -> TransferredBatch:
    return TransferredBatch(device_batch(batch.arrays), batch.skipped)


def build_loader(
    dataset: KeyedDataset,
    sampler: EpochBatchSampler,
    *,
    num_workers: int,
    worker_timeout: float = WORKER_TIMEOUT,
) -> BatchLoader:
    """Return a loader of `dataset`; its batches do not depend on `num_workers` unless a file is marked as bad.

    Args:
        dataset: maps SampleKeys to named arrays of fixed shape.
        sampler: determines the order and the position; set its position before each epoch.
        num_workers: number of worker processes; 0 decodes in the calling process, between the training steps.
        worker_timeout: limit in seconds for reading one sample, after which its worker is killed; in the calling
            process, a slower read is only logged. 0 disables it.
    """
    return BatchLoader(dataset, sampler, num_workers, worker_timeout)


class WorkerPool:
    """Worker processes of one iteration over the data; each of n workers makes every n-th batch.

    Args:
        dataset: data set of the samples.
        sampler: sampler at the position to start from; its position must not change afterwards.
        num_workers: n, reduced to the number of remaining batches if there are fewer.
        timeout: limit in seconds for reading one sample; 0 disables it.
    """

    def __init__(self, dataset: KeyedDataset, sampler: EpochBatchSampler, num_workers: int, timeout: float) -> None:
        self.dataset, self.sampler, self.timeout = dataset, sampler, timeout
        self.first = sampler.batches_done
        self.count = min(num_workers, len(sampler) - self.first)
        self.next_number = self.first  # index of the batch to receive next
        self.workers: list[Worker] = []

    def batches(self, take: Callable[[CollatedBatch], Taken]) -> Iterator[Taken]:
        """Yield `take(batch)` for each batch in order; the batch's arrays are valid only during that call."""
        for slot in range(self.count):
            self.workers.append(self._start(self.first + slot))
        while self.next_number < len(self.sampler):
            slot = self._slot()
            taken = take(self._receive(slot, self.next_number))
            self.workers[slot].release()
            self.next_number += 1
            yield taken

    def is_ready(self) -> bool:
        """Return whether the next batch can be received without waiting; also True if its worker has exited."""
        return bool(self.workers) and self.next_number < len(self.sampler) and self.workers[self._slot()].is_ready()

    def _slot(self) -> int:
        """Return the index of the worker that makes the next batch."""
        return (self.next_number - self.first) % self.count

    def end(self) -> None:
        """Kill the workers."""
        for worker in self.workers:
            worker.end()

    def _start(self, number: int) -> Worker:
        return Worker(self.dataset, self.sampler.from_batch(number, step=self.count), self.timeout)

    def _receive(self, slot: int, number: int) -> CollatedBatch:
        consecutive = 0
        while True:
            try:
                return self.workers[slot].receive()
            except WorkerDiedError as death:
                consecutive += 1
                self._handle_death(death, consecutive)
            self.workers.pop(slot).end()  # removed first: if `_start` raises, it must not be ended twice
            self.workers.insert(slot, self._start(number))

    def _handle_death(self, death: WorkerDiedError, consecutive: int) -> None:
        """Log the death of a worker, and mark the file that caused it, if any, as bad.

        DataError is raised if workers keep dying at this batch, `consecutive` times in a row including this one, or if
        the file takes too long and must not be skipped.
        """
        description = _describe_death(death, self.dataset)
        index = death.reading.index
        timed_out = isinstance(death, WorkerTimeoutError)
        caused_by_file = index is not None and (timed_out or _exit_cause(death) in _CRASHES)
        skips_file = False
        if caused_by_file and isinstance(self.dataset, ReadsFiles):
            skips_file = self.dataset.mark_bad(index or 0, description)
        if consecutive > _MAX_RESTARTS or (timed_out and caused_by_file and not skips_file):
            others = f", after {counted(consecutive - 1, 'other')} died at the same batch" if consecutive > 1 else ""
            raise DataError(f"{description}{others}; {_remedy(death, caused_by_file)}") from death
        logger.warning("%s; starting a replacement", description)


def _describe_death(death: WorkerDiedError, dataset: KeyedDataset) -> str:
    if isinstance(death, WorkerTimeoutError):
        return f"data worker {death.pid} {_describe_read(death.reading, dataset)} ({flag('worker_timeout')})"
    during = "" if death.reading.index is None else f" while reading {_name(death.reading.index, dataset)}"
    return f"data worker {death.pid} died of {_exit_cause(death)}{during}"


def _remedy(death: WorkerDiedError, caused_by_file: bool) -> str:
    if isinstance(death, WorkerTimeoutError):
        own = "check the file and its disk", "remove the file"
        return remedies(*own, "pass --bad_image skip", "raise --worker_timeout")
    if caused_by_file:
        return remedies("repair or remove the file", "pass --bad_image skip")
    lower = remedies("lower --num_workers", "lower --batch_size", "free memory")
    return f"the system may have run out of memory: {lower}"


def _describe_read(reading: Reading, dataset: KeyedDataset) -> str:
    if reading.index is None:
        return f"has not responded for {reading.seconds:.0f} s"
    return f"has been reading {_name(reading.index, dataset)} for {reading.seconds:.0f} s"


def _name(index: int, dataset: KeyedDataset) -> str:
    return dataset.name(index) if isinstance(dataset, ReadsFiles) else f"sample {index}"


def _exit_cause(death: WorkerDiedError) -> str:
    return signal.Signals(-death.exit_code).name if death.exit_code < 0 else f"exit code {death.exit_code}"


@contextmanager
def _warning_about_slow_reads(current_read: CurrentRead, timeout: float, dataset: KeyedDataset) -> Iterator[None]:
    """Log a warning from a thread when a read exceeds the timeout (0: never); a process cannot abort its own read."""
    ended = threading.Event()

    def watch() -> None:
        """Compare the current read with the timeout until the context ends; warn once per read."""
        warned: int | None = None
        while not ended.wait(timeout / 4):
            reading = current_read.get()
            if reading.index not in (None, warned) and reading.seconds > timeout:
                warned = reading.index
                description = _describe_read(reading, dataset)
                logger.warning(
                    "this process %s (%s %g); if it hangs, %s",
                    *(description, flag("worker_timeout"), timeout),
                    remedies("stop it and pass --num_workers 1") or "stop it",
                )

    if timeout:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
