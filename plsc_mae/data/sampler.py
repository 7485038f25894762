"""Assigns samples to batches and processes; a random order depends on seed, epoch and number or labels of samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import paddle

from plsc_mae.data.seeding import SampleKey, balanced_order, epoch_order
from plsc_mae.errors import DataError, remedies
from plsc_mae.wording import counted


class EpochBatchSampler(paddle.io.BatchSampler):
    """Batch sampler that yields one process's batches, as lists of SampleKeys, from any position of an epoch.

    The i-th global batch is the i-th slice of `batch_size * world_size` entries of the epoch's order, and each process
    takes its contiguous part of the slice. So 2 processes of batch size 8 see the same samples as 1 process of 16.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch and process.
        rank: rank of this process, in [0, world_size).
        world_size: number of processes that share the data.
        seed: random seed of the order.
        shuffle: False keeps the data set's order in every epoch.
        drop_last: drop the samples that do not fill a global batch. Otherwise they are shared as evenly as possible,
            and the last batch of a process may be smaller or missing.
        labels: class numbers [length], to draw every class equally often, see `balanced_order`; None draws every sample
            once.

    Raises:
        DataError: the data set is empty, or `drop_last` is True and it does not fill a global batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        labels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(sampler=paddle.io.SequenceSampler(range(length)), batch_size=batch_size, drop_last=drop_last)
        self.length = length
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle = shuffle
        self.labels = labels
        self.global_batch_size = batch_size * world_size
        self.epoch = 0
        self.batches_done = 0
        if length == 0 or (drop_last and length < self.global_batch_size):
            fewer = ("use fewer processes",) if world_size > 1 else ()
            raise DataError(
                f"the data set has {counted(length, 'image')}, fewer than one batch of {self.global_batch_size} "
                f"({batch_size} on each of {counted(world_size, 'process')}); "
                f"{remedies('lower --batch_size', *fewer)}"
            )

    def set_position(self, epoch: int, batches_done: int = 0) -> None:
        """Start the next iteration in `epoch` (from 0) after its first `batches_done` batches.

        Raises:
            DataError: the epoch has fewer batches, for instance because the data set changed before a run was resumed.
        """
        if not 0 <= batches_done <= len(self):
            raise DataError(
                f"cannot resume after batch {batches_done} of epoch {epoch}: an epoch has "
                f"{counted(len(self), 'batch')}; resume with the data set, --batch_size and number of processes of the "
                f"first run"
            )
        self.epoch = epoch
        self.batches_done = batches_done

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.from_batch(self.batches_done)

    def from_batch(self, first: int, step: int = 1) -> Iterator[list[SampleKey]]:
        """Yield every `step`-th batch of the epoch, starting with batch `first`."""
        epoch = self.epoch
        order = self._order(epoch)
        for batch in range(first, len(self), step):
            global_batch = order[batch * self.global_batch_size : (batch + 1) * self.global_batch_size]
            share = np.array_split(global_batch, self.world_size)[self.rank]
            yield [SampleKey(epoch, *draw) for draw in share.tolist()]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the draws of an epoch, [length, 1]: the index; with labels, those of `balanced_order`, [length, 2]."""
        if self.labels is not None:
            return balanced_order(self.seed, epoch, self.labels)
        order = epoch_order(self.seed, epoch, self.length) if self.shuffle else np.arange(self.length)
        return order[:, None]

    def __len__(self) -> int:
        """Return the number of batches of this process in a whole epoch, regardless of the position."""
        full, rest = divmod(self.length, self.global_batch_size)
        return full if self.drop_last else full + (self.rank < rest)
