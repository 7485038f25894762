"""Worker processes that make batches and hand them to the training process.

Paddle's own loader processes are not used, for three reasons. When one is killed, a signal handler raises at an
arbitrary point of the training. A killed process leaves files in /dev/shm. When /dev/shm is full, workers die.

Here every worker has its own pipe and its own anonymous memory, so a worker can be killed at any time and replaced: no
object of other workers can be left locked or half-written, and the kernel frees the memory with its last user.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transforms import Sample
from plsc_mae.errors import DataError, UserError, remedies

_BATCHES_AHEAD = 2  # per worker: one is ready while the next one is made
_ALIGNMENT = 64  # bytes
_POLL_SECONDS = 0.5
_KILL_SECONDS = 10.0
# Job schedulers such as Slurm send these to every process of a job; only the training process handles them.
_PARENT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FORK = multiprocessing.get_context("fork")  # workers inherit the data set without copying it

Arrays = dict[str, npt.NDArray[Any]]

_running: weakref.WeakSet[Worker] = weakref.WeakSet()


@contextlib.contextmanager
def ending_workers() -> Iterator[None]:
    """End, at the end of the context, the workers that were started in it and are still running.

    After an exception, the traceback keeps the iteration over a loader alive, and with it its workers. A notebook keeps
    the traceback until the next exception.
    """
    before = set(_running)
    try:
        yield
    finally:
        for worker in set(_running) - before:
            worker.end()


class KeyedDataset(Protocol):
    """Data set indexed by SampleKey; a sample's "skipped" is 1 if another file replaces an undecodable one, else 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...


@runtime_checkable
class ReadsFiles(Protocol):
    """Data set with one file per sample."""

    # receives the index of each file before it is read; `read_batch` sets it. None disables the record.
    current_read: CurrentRead | None

    def name(self, index: int) -> str:
        """Return the path of a file."""
        ...

    def mark_bad(self, index: int, reason: str) -> bool:
        """Skip a file from now on like an undecodable one and return True; return False if such files are errors."""
        ...


class CollatedBatch(NamedTuple):
    """Samples stacked by name, and the number of samples that replace undecodable files."""

    arrays: Arrays
    skipped: int


class WorkerDiedError(Exception):
    """Error of a worker that exited before its last batch.

    Attributes:
        pid: process id of the worker.
        reading: sample that it was reading, and for how long.
        exit_code: exit code of the process; -N if signal N killed it.
    """

    def __init__(self, pid: int, reading: Reading, exit_code: int) -> None:
        super().__init__(pid, reading, exit_code)
        self.pid = pid
        self.reading = reading
        self.exit_code = exit_code


class WorkerTimeoutError(WorkerDiedError):
    """Error of a worker that was killed because it made no progress within the timeout."""


class Worker:
    """Forked process that makes batches in sequence, up to two ahead of their use.

    Args:
        dataset: data set of the samples.
        batches: sample keys of each batch; the worker iterates over them.
        timeout: limit in seconds for reading one sample; 0 disables it.

    Attributes:
        pid: process id.

    Raises:
        DataError: the system refuses another process, open file or shared memory.
    """

    def __init__(self, dataset: KeyedDataset, batches: Iterable[list[SampleKey]], timeout: float) -> None:
        self.timeout = timeout
        self._current_read = CurrentRead()
        try:
            self._buffers = [SharedBuffer() for _ in range(_BATCHES_AHEAD)]
            self._pipe, worker_end = multiprocessing.Pipe()
            arguments = (dataset, batches, worker_end, self._buffers, self._current_read, os.getpid())
            self._process = _FORK.Process(target=_work, args=arguments, daemon=True)
            with _parent_signals_blocked():
                self._process.start()
        except OSError as error:
            limits = "raise the limits of open files and processes (ulimit -n, ulimit -u)"
            raise DataError(
                f"cannot start a data worker: {error.strerror}; "
                f"{remedies('lower --num_workers', 'free memory', limits)}"
            ) from error
        self.pid = self._process.pid or 0
        worker_end.close()  # so that the pipe is closed when the worker exits
        # Runs before multiprocessing's own clean-up at exit, which sends SIGTERM, a signal that workers block.
        self._kill = Finalize(None, _kill, args=(self._process,), exitpriority=10)
        _running.add(self)

    def receive(self) -> CollatedBatch:
        """Wait for the next batch and return it; its arrays are valid until `release`.

        Raises:
            WorkerDiedError: the worker exited or timed out.
            UserError: the data set raised it in the worker, or there is not enough memory for the batch.
            RuntimeError: the data set raised another exception; the message contains its traceback.
        """
        waited = 0.0  # counts polls instead of reading a clock, so that a suspended job does not time out
        while not self._pipe.poll(_POLL_SECONDS):
            waited += _POLL_SECONDS
            if self.timeout and min(waited, self._current_read.get().seconds) > self.timeout:
                raise self._post_mortem(WorkerTimeoutError)
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            raise self._post_mortem(WorkerDiedError) from None
        if isinstance(message, Exception):
            raise message
        self._in_use, layouts, skipped = message
        return CollatedBatch(self._buffers[self._in_use].read(layouts), skipped)

    def is_ready(self) -> bool:
        """Return whether `receive` would return or raise at once."""
        return self._pipe.poll()

    def release(self) -> None:
        """Allow the worker to overwrite the batch received last."""
        with contextlib.suppress(OSError):  # the worker has exited; if batches are missing, `receive` raises
            self._pipe.send(self._in_use)

    def end(self) -> None:
        """Kill the process and free the shared memory; a second call does nothing."""
        if self not in _running:
            return
        _running.discard(self)
        self._kill()
        self._pipe.close()
        for buffer in self._buffers:
            buffer.close()

    def _post_mortem(self, kind: type[WorkerDiedError]) -> WorkerDiedError:
        reading = self._current_read.get()
        self._process.join(_POLL_SECONDS if kind is WorkerDiedError else 0)
        self._kill()
        return kind(self.pid, reading, self._process.exitcode or 0)


class _ArrayLayout(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SharedBuffer:
    """Growing memory for arrays, shared by this process and the processes forked later."""

    def __init__(self) -> None:
        self._file = os.memfd_create("plsc_mae batch")
        self._memory: mmap.mmap | None = None

    def write(self, arrays: Arrays) -> list[_ArrayLayout]:
        """Copy arrays into the buffer, over its former content, and return their layouts.

        Raises:
            DataError: there is not enough memory.
        """
        layouts = []
        end = 0
        for name, array in arrays.items():
            layouts.append(_ArrayLayout(name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        try:
            os.posix_fallocate(self._file, 0, end)  # otherwise missing memory kills the process at the first access
        except OSError as error:
            raise DataError(
                f"not enough memory for a batch of {end / 2**20:.1f} MB ({error.strerror}); "
                f"{remedies('lower --num_workers', 'lower --batch_size', 'free memory')}"
            ) from error
        for layout, view in zip(layouts, self.read(layouts).values(), strict=True):
            view[...] = arrays[layout.name]
        return layouts

    def read(self, layouts: Sequence[_ArrayLayout]) -> Arrays:
        """Return the arrays with these layouts as views of the buffer, without copying them."""
        size = os.fstat(self._file).st_size
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._file, size)
        return {
            layout.name: np.ndarray(layout.shape, layout.dtype, buffer=self._memory, offset=layout.offset)
            for layout in layouts
        }

    def close(self) -> None:
        """Close the buffer; its memory is freed when the last array that `read` returned is deleted."""
        os.close(self._file)
        self._memory = None


def collate(samples: Sequence[Sample]) -> CollatedBatch:
    """Stack samples by name and sum their "skipped" counts."""
    arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    return CollatedBatch(arrays, int(arrays.pop("skipped").sum()))


def read_batch(dataset: KeyedDataset, keys: Sequence[SampleKey], current_read: CurrentRead) -> CollatedBatch:
    """Read and collate the samples of a batch; `current_read` records each sample while it is read."""
    if isinstance(dataset, ReadsFiles):
        dataset.current_read = current_read
    samples = []
    for key in keys:
        current_read.set(key.index)
        samples.append(dataset[key])
    current_read.clear()
    return collate(samples)


def _work(
    dataset: KeyedDataset,
    batches: Iterable[list[SampleKey]],
    pipe: Connection,
    buffers: Sequence[SharedBuffer],
    current_read: CurrentRead,
    parent: int,
) -> None:
    """Run the worker: make each batch and write it to a free buffer."""
    _set_up_worker(parent)
    free = list(range(len(buffers)))
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has exited
        for keys in batches:
            number = free.pop() if free else pipe.recv()
            pipe.send(_make(dataset, keys, number, buffers[number], current_read))


def _make(
    dataset: KeyedDataset, keys: Sequence[SampleKey], number: int, buffer: SharedBuffer, current_read: CurrentRead
) -> tuple[int, list[_ArrayLayout], int] | Exception:
    try:
        batch = read_batch(dataset, keys, current_read)
        return number, buffer.write(batch.arrays), batch.skipped
    except UserError as error:
        return type(error)(str(error))
    except Exception:  # a bug; pickling the exception would lose its traceback
        return RuntimeError(f"a data worker raised an exception:\n{traceback.format_exc()}")


@contextlib.contextmanager
def _parent_signals_blocked() -> Iterator[None]:
    """Block signals while a worker is forked; the worker inherits the mask and never receives them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up_worker(parent: int) -> None:
    """Make the worker exit with its parent, and let the kernel kill the worker first when memory runs out."""
    gc.freeze()  # freeing a tensor of the parent here could wait for a lock that a thread of the parent held
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    with contextlib.suppress(OSError):  # not available on every system
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(500, int(score.read_text()))))


def end_with_parent(parent: int) -> None:
    """Exit this forked process when its parent, the process `parent`, has ended; the function never returns."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join(_KILL_SECONDS)


_NOTHING = -1


class Reading(NamedTuple):
    """State of a `CurrentRead`.

    Attributes:
        index: index of the sample that is being read; None if no sample is.
        seconds: time since `index` was set.
    """

    index: int | None  # type: ignore[assignment]  # hides tuple.index
    seconds: float


class CurrentRead:
    """Record of the sample being read, in memory shared with processes forked later; only one process may write."""

    def __init__(self) -> None:
        self._cells = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.float64)  # index and time; exact up to 2**53
        self.clear()

    def set(self, index: int) -> None:
        """Record that reading of sample `index` starts now."""
        self._cells[1] = time.monotonic()  # before the index, so that a new index is never seen with an old time
        self._cells[0] = index

    def clear(self) -> None:
        """Record that no sample is being read."""
        self.set(_NOTHING)

    def get(self) -> Reading:
        """Return the sample that is being read, if any, and the seconds since that was recorded."""
        index = int(self._cells[0])
        return Reading(None if index == _NOTHING else index, time.monotonic() - float(self._cells[1]))
