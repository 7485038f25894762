"""Random generators and seeds.

Every random choice about a sample (crop, flip, mask) comes from a generator that is seeded with the run's seed and the
sample's key only. So the same seed gives the same samples with any number of workers or processes and after a resume.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Arbitrary constants that make the kinds of generators independent; changing one changes every run.
_SAMPLE_STREAM = 0x53414D50
_ORDER_STREAM = 0x4F524452
_STAND_IN_STREAM = 0x53544944
_TURN_STREAM = 0x5455524E
_GOLDEN_SECTION = (5**0.5 - 1) / 2


class SampleKey(NamedTuple):
    """Key of a sample: its epoch, its index in the data set, and the number of its earlier draws in the epoch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    repeat: int = 0


def sample_rng(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """Return the generator of all random choices about a sample; the arguments, a seed and a key, must be >= 0."""
    repeats = [repeat] if repeat else []  # the first draw is the same as that of an epoch without repeats
    return np.random.default_rng([_SAMPLE_STREAM, seed, epoch, index, *repeats])


def epoch_order(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    """Return the sample indices [length] in the random order in which an epoch visits them."""
    return np.random.default_rng([_ORDER_STREAM, seed, epoch]).permutation(length)


def balanced_order(seed: int, epoch: int, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the n draws of an epoch of n images in random order; every class has the same number of them, +-1.

    The images of a class take turns in a cycle that continues from epoch to epoch. So an epoch draws every image of a
    small class equally often, +-1, and consecutive epochs see all images of a large one.

    Args:
        seed: random seed of the cycles and of the order.
        epoch: number of the epoch, from 0.
        labels: class numbers [n] of the images.

    Returns:
        [n, 2]: index of the image, and number of its earlier draws in the epoch.
    """
    count = len(labels)
    shuffled = np.random.default_rng([_TURN_STREAM, seed]).permutation(count)
    cycles = shuffled[np.argsort(labels[shuffled], kind="stable")]  # those of all classes, one after the other
    sizes = np.unique(labels, return_counts=True)[1]
    turns, classes = np.divmod(np.arange(epoch * count, (epoch + 1) * count), len(sizes))
    first_turns = -((classes - epoch * count) // len(sizes))
    starts, sizes = (np.cumsum(sizes) - sizes)[classes], sizes[classes]
    draws = np.stack([cycles[starts + turns % sizes], (turns - first_turns) // sizes], axis=1)
    return draws[epoch_order(seed, epoch, count)]


def stand_in_offsets(seed: int, epoch: int, length: int, most: int) -> list[int]:
    """Return distances from an undecodable file to the files to try in its place, modulo `length`, first choice first.

    All files of an epoch have the same distances, so different bad files have different first choices. The first
    distance is between 1/4 and 3/4 of the list, to get beyond a run of consecutive bad files. The next ones advance by
    the golden section, which spreads them evenly.

    Returns:
        min(most, length - 1) distinct integers in [1, length).
    """
    at = np.random.default_rng([_STAND_IN_STREAM, seed, epoch]).uniform(0.25, 0.75)
    offsets: dict[int, None] = {}
    while len(offsets) < min(most, length - 1):
        if offset := int(at * length):
            offsets[offset] = None
        at = (at + _GOLDEN_SECTION) % 1
    return list(offsets)


def device_seed(seed: int, epoch: int, iteration: int, rank: int) -> int:
    """Return the seed of the device's random operations, such as drop path, for one iteration.

    Because the seed depends on the arguments alone, a resumed run repeats the draws of an uninterrupted one. `rank` is
    the process's random stream (`plsc_mae.parallel.world.World.stream`).
    """
    return int(np.random.SeedSequence([seed, epoch, iteration, rank]).generate_state(1)[0] >> 1)
