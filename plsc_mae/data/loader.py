"""Batches as Paddle tensors, decoded by worker processes; the data path's interface to training.

Workers that die are replaced and go on where they were: a batch depends on seed, epoch and keys alone, so the batches
are those of an undisturbed run.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import paddle
from paddle import Tensor

from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.workers import (
    Bookmark,
    CollatedBatch,
    KeyedDataset,
    Reading,
    ReadsFiles,
    Worker,
    WorkerDiedError,
    WorkerHangsError,
    collate,
    read_batch,
)
from plsc_mae.errors import DataError

__all__ = ["WORKER_TIMEOUT", "BatchLoader", "KeyedDataset", "build_loader", "collate"]

WORKER_TIMEOUT = 300.0  # seconds
_MAX_RESTARTS = 3  # in a row, without a batch in between
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")

Taken = TypeVar("Taken")

logger = logging.getLogger(__name__)


class BatchLoader:
    """The batches of an epoch, from the sampler's position on; each iteration starts workers and ends them.

    Attributes:
        skipped: files passed over so far because they could not be decoded.
    """

    def __init__(
        self, dataset: KeyedDataset, sampler: EpochBatchSampler, num_workers: int, worker_timeout: float
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.worker_timeout = worker_timeout
        self.skipped = 0

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of tensors, the sample's arrays stacked along a new first axis.

        Raises:
            DataError: a file cannot be decoded or takes too long, workers keep dying, or whatever else the data set
                complains of.
        """
        return self._from_workers() if self.num_workers else self._in_process()

    def _in_process(self) -> Iterator[dict[str, Tensor]]:
        bookmark = Bookmark()
        with _warning_of_hangs(bookmark, self.worker_timeout, self.dataset):
            for keys in self.sampler:
                yield self._tensors(read_batch(self.dataset, keys, bookmark))

    def _from_workers(self) -> Iterator[dict[str, Tensor]]:
        crew = WorkerPool(self.dataset, copy.copy(self.sampler), self.num_workers, self.worker_timeout)
        try:
            yield from crew.batches(self._tensors)
        finally:
            crew.end()

    def _tensors(self, batch: CollatedBatch) -> dict[str, Tensor]:
        self.skipped += batch.skipped
        return {name: paddle.to_tensor(array) for name, array in batch.arrays.items()}


def build_loader(
    dataset: KeyedDataset,
    sampler: EpochBatchSampler,
    *,
    num_workers: int,
    worker_timeout: float = WORKER_TIMEOUT,
) -> BatchLoader:
    """Return the batches that `sampler` asks of `dataset`, the same ones for any `num_workers`.

    Args:
        dataset: maps SampleKeys to named arrays of fixed shape.
        sampler: decides on order and position; set its position before each epoch.
        num_workers: processes that decode; 0 decodes in the caller's own, between the steps.
        worker_timeout: seconds that reading one sample may take; 0 for any time.
    """
    return BatchLoader(dataset, sampler, num_workers, worker_timeout)


class WorkerPool:
    """The workers of one pass over the data: each makes every n-th batch, and when it dies another one goes on.

    Args:
        dataset: of the samples.
        sampler: at the position to start from; nobody may move it any more.
        num_workers: how many.
        timeout: seconds that one sample may take; 0 for any time.
    """

    def __init__(self, dataset: KeyedDataset, sampler: EpochBatchSampler, num_workers: int, timeout: float) -> None:
        self.dataset, self.sampler, self.timeout = dataset, sampler, timeout
        self.first = sampler.batches_done
        self.count = min(num_workers, len(sampler) - self.first)
        self.workers: list[Worker] = []

    def batches(self, take: Callable[[CollatedBatch], Taken]) -> Iterator[Taken]:
        """Yield what `take` makes of the batches, in order; the arrays it gets are valid for as long as it runs."""
        for place in range(self.count):
            self.workers.append(self._start(self.first + place))
        for number in range(self.first, len(self.sampler)):
            place = (number - self.first) % self.count
            taken = take(self._receive(place, number))
            self.workers[place].release()
            yield taken

    def end(self) -> None:
        """Kill the workers."""
        for worker in self.workers:
            worker.end()

    def _start(self, number: int) -> Worker:
        return Worker(self.dataset, self.sampler.from_batch(number, step=self.count), self.timeout)

    def _receive(self, place: int, number: int) -> CollatedBatch:
        lost = 0
        while True:
            try:
                return self.workers[place].receive()
            except WorkerDiedError as loss:
                lost += 1
                self._bear(loss, lost)
            self.workers.pop(place).end()
            self.workers.insert(place, self._start(number))

    def _bear(self, loss: WorkerDiedError, lost: int) -> None:
        """Warn of the loss of a worker, the `lost`-th in a row, and take the file that is to blame for a bad one.

        Raises:
            DataError: a successor would do no better.
        """
        story, index = _story(loss, self.dataset), loss.reading.index
        files_fault = index is not None and (isinstance(loss, WorkerHangsError) or _signal_name(loss) in _CRASHES)
        passed_over = files_fault and isinstance(self.dataset, ReadsFiles) and self.dataset.pass_over(index or 0, story)
        if lost > _MAX_RESTARTS or (isinstance(loss, WorkerHangsError) and files_fault and not passed_over):
            others = f", after {lost - 1} others came to an end at the same batch" if lost > 1 else ""
            raise DataError(f"{story}{others}; {_remedy(loss, files_fault)}") from loss
        logger.warning("%s; another one takes its place", story)


def _story(loss: WorkerDiedError, dataset: KeyedDataset) -> str:
    if isinstance(loss, WorkerHangsError):
        return f"data worker {loss.pid} {_occupation(loss.reading, dataset)} (--worker_timeout)"
    during = "" if loss.reading.index is None else f" while reading {_name(loss.reading.index, dataset)}"
    return f"data worker {loss.pid} was ended by {_signal_name(loss)}{during}"


def _remedy(loss: WorkerDiedError, files_fault: bool) -> str:
    if isinstance(loss, WorkerHangsError):
        return (
            "check the file and the disk it is on, remove it, pass --bad_image skip to go on without it, or raise "
            "--worker_timeout"
        )
    if files_fault:
        return "mend or remove the file, or pass --bad_image skip"
    return "the system does that for lack of memory: lower --num_workers or --batch_size, or free memory"


def _occupation(reading: Reading, dataset: KeyedDataset) -> str:
    if reading.index is None:
        return f"has not come forward for {reading.seconds:.0f} s"
    return f"has been reading {_name(reading.index, dataset)} for {reading.seconds:.0f} s"


def _name(index: int, dataset: KeyedDataset) -> str:
    return dataset.name(index) if isinstance(dataset, ReadsFiles) else f"sample {index}"


def _signal_name(loss: WorkerDiedError) -> str:
    return signal.Signals(-loss.exit_code).name if loss.exit_code < 0 else f"exit code {loss.exit_code}"


@contextmanager
def _warning_of_hangs(bookmark: Bookmark, timeout: float, dataset: KeyedDataset) -> Iterator[None]:
    """Let a thread warn of what is not read in time; nothing can break off the reading in the same process."""
    ended = threading.Event()

    def watch() -> None:
        warned: int | None = None
        while not ended.wait(timeout / 4):
            reading = bookmark.look()
            if reading.index not in (None, warned) and reading.seconds > timeout:
                warned = reading.index
                told = _occupation(reading, dataset)
                logger.warning("the process %s; if it does not end, stop it and pass --num_workers 1", told)

    if timeout:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
