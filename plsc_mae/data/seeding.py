"""Where every random choice about a sample comes from.

Randomness belongs to the sample: a crop, a flip or a mask is drawn from a generator seeded by the run's seed, the
epoch and the sample's index, and by nothing else. So the same seed gives the same samples for any number of workers
or processes and after any resume.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Arbitrary constants that keep the two kinds of draws apart; changing one changes every run.
_SAMPLE_STREAM = 0x53414D50
_ORDER_STREAM = 0x4F524452


class SampleKey(NamedTuple):
    """What a sampler hands to a data set: which image, and in which epoch it is seen."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a key


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of every random choice about one sample in one epoch; all three must be >= 0."""
    return np.random.default_rng([_SAMPLE_STREAM, seed, epoch, index])


def epoch_order(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    """Return the order [length] in which one epoch visits the samples."""
    return np.random.default_rng([_ORDER_STREAM, seed, epoch]).permutation(length)


def device_seed(seed: int, epoch: int, iteration: int, rank: int) -> int:
    """Seed of what is random on the device (drop path): position in the run and rank, so that a resume repeats it."""
    return int(np.random.SeedSequence([seed, epoch, iteration, rank]).generate_state(1)[0] >> 1)
