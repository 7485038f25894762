"""Processes that make batches: what travels between them and the training process, and how they end.

Paddle's own loader processes are not used. A killed one ends the run, from a signal handler that raises wherever the
training happens to be; it leaves files in /dev/shm for good; and when /dev/shm fills up they die. Here every worker has
a pipe and memory of its own, without a name in any file system, so any of them can be killed at any time and replaced:
nothing is shared that could be left locked or half-written, and the kernel frees the memory with its last user.
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
from plsc_mae.errors import DataError

_BATCHES_AHEAD = 2  # per worker: one ready while the next is made
_ALIGNMENT = 64
_LOOK_SECONDS = 0.5
_KILL_SECONDS = 10.0
# Slurm and the like send these to every process of a job. The training process decides what they mean.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FORK = multiprocessing.get_context("fork")  # the data set is inherited, not copied

Arrays = dict[str, npt.NDArray[Any]]


class KeyedDataset(Protocol):
    """A data set whose samples are asked for by key and count the files "skipped" for them."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A data set with a file per sample.

    Attributes:
        bookmark: where it notes the number of the file that it is about to read.
    """

    bookmark: Bookmark | None

    def name(self, index: int) -> str:
        """Return the path of a file."""
        ...

    def pass_over(self, index: int, reason: str) -> bool:
        """Take a file for one that cannot be decoded from now on; False where such files are errors."""
        ...


class CollatedBatch(NamedTuple):
    """Samples stacked name by name, and how many files were passed over for them."""

    arrays: Arrays
    skipped: int


class WorkerDiedError(Exception):
    """A worker ended before its last batch.

    Attributes:
        pid: of the worker.
        reading: what it was reading.
        exit_code: as of multiprocessing: a negative one is a signal's number.
    """

    def __init__(self, pid: int, reading: Reading, exit_code: int) -> None:
        super().__init__(pid, reading, exit_code)
        self.pid, self.reading, self.exit_code = pid, reading, exit_code


class WorkerHangsError(WorkerDiedError):
    """A worker was killed, as it did not come forward for too long."""


class Worker:
    """A forked process that makes batches one after the other, two ahead of their use.

    Args:
        dataset: of the samples.
        batches: keys of the samples of each batch; iterated over in the worker.
        timeout: seconds that one sample may take; 0 for any time.

    Attributes:
        pid: of the process.

    Raises:
        DataError: the system does not allow for another process.
    """

    def __init__(self, dataset: KeyedDataset, batches: Iterable[list[SampleKey]], timeout: float) -> None:
        self.timeout = timeout
        self._bookmark = Bookmark()
        try:
            self._buffers = [SharedBuffer() for _ in range(_BATCHES_AHEAD)]
            self._pipe, theirs = multiprocessing.Pipe()
            arguments = (dataset, batches, theirs, self._buffers, self._bookmark, os.getpid())
            self._process = _FORK.Process(target=_work, args=arguments, daemon=True)
            with _leaving_signals_to_the_parent():
                self._process.start()
        except OSError as error:
            raise DataError(
                f"cannot start a data worker: {error.strerror}; lower --num_workers, free memory, or raise the limits "
                "of open files and processes (ulimit -n, ulimit -u)"
            ) from error
        self.pid = self._process.pid or 0
        theirs.close()  # so that the pipe ends with the worker
        # Before multiprocessing's own clean-up at exit, whose SIGTERM a worker does not see.
        self._kill = Finalize(None, _kill, args=(self._process,), exitpriority=10)

    def receive(self) -> CollatedBatch:
        """Wait for the next batch; its arrays are valid until `release`.

        Raises:
            WorkerDiedError: there will be none.
            DataError: as the data set says.
            RuntimeError: a bug in the data set, with its traceback.
        """
        waited = 0.0  # counted, not measured: a job that was suspended for an hour has not waited
        while not self._pipe.poll(_LOOK_SECONDS):
            waited += _LOOK_SECONDS
            if self.timeout and min(waited, self._bookmark.look().seconds) > self.timeout:
                raise self._post_mortem(WorkerHangsError)
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            raise self._post_mortem(WorkerDiedError) from None
        if isinstance(message, Exception):
            raise message
        self._in_use, places, skipped = message
        return CollatedBatch(self._buffers[self._in_use].read(places), skipped)

    def release(self) -> None:
        """Let the worker write the next batch over the one received last."""
        with contextlib.suppress(OSError):  # it is dead or done: `receive` will tell, if there is more to come
            self._pipe.send(self._in_use)

    def end(self) -> None:
        """Kill the process, whatever it does, and free what it shared."""
        self._kill()
        self._pipe.close()
        for buffer in self._buffers:
            buffer.close()

    def _post_mortem(self, kind: type[WorkerDiedError]) -> WorkerDiedError:
        reading = self._bookmark.look()
        self._process.join(_LOOK_SECONDS if kind is WorkerDiedError else 0)
        self._kill()
        return kind(self.pid, reading, self._process.exitcode or 0)


class _Place(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SharedBuffer:
    """Memory that this process and those forked later see, of any size, in which arrays are handed over."""

    def __init__(self) -> None:
        self._file = os.memfd_create("plsc_mae batch")
        self._memory: mmap.mmap | None = None

    def write(self, arrays: Arrays) -> list[_Place]:
        """Copy arrays in; returns where they are.

        Raises:
            DataError: there is not enough memory.
        """
        places, end = [], 0
        for name, array in arrays.items():
            places.append(_Place(name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        try:
            os.posix_fallocate(self._file, 0, end)  # else the lack of memory would kill at the first access
        except OSError as error:
            raise DataError(
                f"no memory to hand over a batch of {end / 2**20:.1f} MB ({error.strerror}); "
                "lower --num_workers or --batch_size, or free memory"
            ) from error
        for place, view in zip(places, self.read(places).values(), strict=True):
            view[...] = arrays[place.name]
        return places

    def read(self, places: Sequence[_Place]) -> Arrays:
        """Return the arrays at `places`, not copied."""
        size = os.fstat(self._file).st_size
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._file, size)
        return {
            place.name: np.ndarray(place.shape, place.dtype, buffer=self._memory, offset=place.offset)
            for place in places
        }

    def close(self) -> None:
        """Give up the memory once the arrays read from it are gone."""
        os.close(self._file)
        self._memory = None


def collate(samples: Sequence[Sample]) -> CollatedBatch:
    """Stack samples name by name; "skipped" becomes one plain number."""
    arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    return CollatedBatch(arrays, int(arrays.pop("skipped").sum()))


def read_batch(dataset: KeyedDataset, keys: Sequence[SampleKey], bookmark: Bookmark) -> CollatedBatch:
    """Make a batch in this process, noting in the bookmark what is being read."""
    if isinstance(dataset, ReadsFiles):
        dataset.bookmark = bookmark
    samples = []
    for key in keys:
        bookmark.set(key.index)
        samples.append(dataset[key])
    bookmark.clear()
    return collate(samples)


def _work(
    dataset: KeyedDataset,
    batches: Iterable[list[SampleKey]],
    pipe: Connection,
    buffers: Sequence[SharedBuffer],
    bookmark: Bookmark,
    parent: int,
) -> None:
    """Make the batches, each into a buffer that is free; runs in the worker."""
    _settle(parent)
    free = list(range(len(buffers)))
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        for keys in batches:
            number = free.pop() if free else pipe.recv()
            pipe.send(_make(dataset, keys, number, buffers[number], bookmark))


def _make(
    dataset: KeyedDataset, keys: Sequence[SampleKey], number: int, buffer: SharedBuffer, bookmark: Bookmark
) -> tuple[int, list[_Place], int] | Exception:
    try:
        batch = read_batch(dataset, keys, bookmark)
        return number, buffer.write(batch.arrays), batch.skipped
    except DataError as error:
        return DataError(str(error))
    except Exception:  # a bug: its traceback would be lost on the way to the parent
        return RuntimeError(f"in a data worker:\n{traceback.format_exc()}")


@contextlib.contextmanager
def _leaving_signals_to_the_parent() -> Iterator[None]:
    """Block signals while a process is forked: it inherits that, and never sees them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle(parent: int) -> None:
    """End with the parent even if it is killed, and die before it when memory is short."""
    gc.freeze()  # the parent's tensors: freeing one here could wait for a lock that a thread of the parent held
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    with contextlib.suppress(OSError):  # a system without it chooses by its own lights
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(500, int(score.read_text()))))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join(_KILL_SECONDS)


_NOTHING = -1


class Reading(NamedTuple):
    """A glance at a bookmark: number of the sample, None between two, and seconds since it was set."""

    index: int | None  # type: ignore[assignment]  # hides tuple.index
    seconds: float


class Bookmark:
    """One place in memory that is shared with the processes forked after it was made; one of them writes."""

    def __init__(self) -> None:
        self._cells = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.float64)  # index, time; a double holds 2**53
        self.clear()

    def set(self, index: int) -> None:
        """Note that sample `index` is being read from now on."""
        self._cells[1] = time.monotonic()  # before the index: a new one must never be seen with an old time
        self._cells[0] = index

    def clear(self) -> None:
        """Note that nothing is being read."""
        self.set(_NOTHING)

    def look(self) -> Reading:
        """Tell what is being read and for how long."""
        index = int(self._cells[0])
        return Reading(None if index == _NOTHING else index, time.monotonic() - float(self._cells[1]))
