"""Batches are slices of one order, with any number of processes and after a resume at any position."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.seeding import SampleKey, balanced_order, epoch_order
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]
LABELS = np.repeat([0, 1, 2], [50, 13, 7])


def sampler(length: int = 70, batch_size: int = 16, rank: int = 0, world_size: int = 1, **options) -> EpochBatchSampler:
    return EpochBatchSampler(length, batch_size, rank, world_size, seed=3, **options)


def test_balanced_batches_are_slices_of_the_balanced_order():
    """With one process or two, and from any position."""
    one = sampler(labels=LABELS)
    one.set_position(epoch=2)
    order = balanced_order(3, 2, LABELS)
    whole = list(one)
    assert whole == [[SampleKey(2, i, repeat) for i, repeat in order[at : at + 16].tolist()] for at in (0, 16, 32, 48)]
    ranks = [sampler(batch_size=8, rank=rank, world_size=2, labels=LABELS) for rank in range(2)]
    for rank in ranks:
        rank.set_position(epoch=2, batches_done=1)
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole[1:]


def test_batches_are_slices_of_the_epochs_order():
    batches = sampler()
    batches.set_position(epoch=2)
    order = epoch_order(3, 2, 70)
    assert list(batches) == [[SampleKey(2, i) for i in order[at : at + 16]] for at in (0, 16, 32, 48)]
    assert len(batches) == 4


def test_two_processes_see_what_one_sees():
    one = list(sampler(batch_size=16))
    ranks = [list(sampler(batch_size=8, rank=rank, world_size=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one


@pytest.mark.parametrize("length", [65, 66, 70, 79, 80])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_without_drop_last_every_sample_is_seen_once(length, world_size):
    ranks = [sampler(length, 8, rank, world_size, shuffle=False, drop_last=False) for rank in range(world_size)]
    batches = [list(one) for one in ranks]
    assert [len(one) for one in ranks] == [len(own) for own in batches]
    assert all(batch for own in batches for batch in own)
    seen = [key.index for own in batches for batch in own for key in batch]
    assert sorted(seen) == list(range(length))


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_position_resumes_mid_epoch(done):
    whole, resumed = sampler(), sampler()
    whole.set_position(epoch=5)
    resumed.set_position(epoch=5, batches_done=done)
    assert list(resumed) == list(whole)[done:]
    assert len(resumed) == 4


def test_position_is_taken_when_iteration_starts():
    batches = sampler()
    iterator = iter(batches)
    first = next(iterator)
    batches.set_position(epoch=1, batches_done=2)
    assert all(key.epoch == 0 for batch in [first, *iterator] for key in batch)


def test_epochs_differ_and_repeat():
    batches = sampler()
    zero = list(batches)
    batches.set_position(1)
    assert [[key.index for key in batch] for batch in batches] != [[key.index for key in batch] for batch in zero]
    batches.set_position(0)
    assert list(batches) == zero


def test_position_beyond_the_epoch_is_an_error():
    with pytest.raises(DataError, match=r"batch 5 of epoch 0: .*4 batches.*--batch_size"):
        sampler().set_position(0, 5)


def test_too_few_images_for_a_batch():
    with pytest.raises(DataError, match=r"31 images, fewer than one batch of 32 \(16 on each of 2 .*--batch_size"):
        sampler(31, 16, world_size=2)
    assert len(sampler(31, 16, world_size=2, drop_last=False)) == 1
    with pytest.raises(DataError, match="0 images"):
        sampler(0, drop_last=False)
