"""Random generators and seeds.

Every random choice about a sample (crop, flip, mask) comes from a generator that is seeded with the run's seed, the
epoch and the sample's index only. So the same seed gives the same samples with any number of workers or processes and
after a resume.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Arbitrary constants that make the kinds of generators independent; changing one changes every run.
_SAMPLE_STREAM = 0x53414D50
_ORDER_STREAM = 0x4F524452
_STAND_IN_STREAM = 0x53544944
_GOLDEN_SECTION = (5**0.5 - 1) / 2


class SampleKey(NamedTuple):
    """Key of a sample: its epoch and its index in the data set."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of all random choices about one sample in one epoch; the arguments must be >= 0."""
    return np.random.default_rng([_SAMPLE_STREAM, seed, epoch, index])


def epoch_order(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    """Return the sample indices [length] in the random order in which an epoch visits them."""
    return np.random.default_rng([_ORDER_STREAM, seed, epoch]).permutation(length)


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
