"""Which images an iteration is made of, and the iteration once more: both follow from seed, epoch and position."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import paddle

from plsc_mae.data.imagefolder import ImageDataset
from plsc_mae.data.loader import BatchLoader
from plsc_mae.data.randomness import SampleKey
from plsc_mae.methods.base import Batch


def device_seed(seed: int, epoch: int, iteration: int, rank: int) -> int:
    """Seed of what is random on the device (drop path): position in the run and rank, so that a resume repeats it."""
    return int(np.random.SeedSequence([seed, epoch, iteration, rank]).generate_state(1)[0] >> 1)


def keys_of(loader: BatchLoader, epoch: int, iteration: int, rank: int) -> list[SampleKey]:
    """The samples of one of the processes that share the data."""
    sampler = copy.copy(loader.sampler)
    sampler.rank = rank
    sampler.set_position(epoch, iteration)
    return next(iter(sampler))


def batch_of(loader: BatchLoader, keys: list[SampleKey]) -> Batch:
    """Read samples again.

    Raises:
        DataError: a file can no longer be read.
    """
    samples = [loader.dataset[key] for key in keys]
    return {name: paddle.to_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def described(loader: BatchLoader, keys: list[SampleKey]) -> list[dict[str, Any]]:
    """Number and, where there are files, path of samples; with --bad_image skip another file may have stood in."""
    dataset = loader.dataset
    if isinstance(dataset, ImageDataset):
        return [{"index": key.index, "path": dataset.images.path(key.index)} for key in keys]
    return [{"index": key.index} for key in keys]
