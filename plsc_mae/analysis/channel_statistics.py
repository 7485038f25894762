"""Mean and standard deviation of every channel over all pixels of a data set, in one pass in float64.

The moments of sets of pixels are combined by the formula of Chan, Golub and LeVeque (1979), which avoids the rounding
error of a plain sum of squares. Images are combined in the order of their list, so the result does not depend on the
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.data.decode import Box, SourceImage
from plsc_mae.data.transfer import HOST_PREFIX
from plsc_mae.data.transforms import Sample

MOMENTS = HOST_PREFIX + "moments"
_PART_PIXELS = 1 << 20  # pixels that are read at a time, which bounds the memory for large files
Array = npt.NDArray[Any]


class Moments(NamedTuple):
    """Moments of the pixels of each channel, float64 [C], on a scale from 0 to 1."""

    pixels: Array  # number of pixels of a channel
    mean: Array
    squares: Array  # sum of the squared differences from the mean
    low: Array  # smallest value
    high: Array  # largest value

    @property
    def std(self) -> Array:
        """Standard deviation of the population."""
        return np.sqrt(self.squares / self.pixels)


def moments_of(pixels: Array) -> Moments:
    """Return the moments of pixels [h, w, C] from 0 to 255."""
    values = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64) / 255
    mean = values.mean(axis=0)
    count = np.full(len(mean), float(len(values)))
    return Moments(count, mean, ((values - mean) ** 2).sum(axis=0), values.min(axis=0), values.max(axis=0))


def combine(parts: Iterable[Moments]) -> Moments:
    """Combine the moments of disjoint sets of pixels, at least one, into the moments of all their pixels."""
    first, *others = parts
    for part in others:
        count, delta = first.pixels + part.pixels, part.mean - first.mean
        first = Moments(
            count,
            first.mean + delta * part.pixels / count,
            first.squares + part.squares + delta**2 * first.pixels * part.pixels / count,
            np.minimum(first.low, part.low),
            np.maximum(first.high, part.high),
        )
    return first


def measure_channels(image: SourceImage, _rng: np.random.Generator) -> Sample:
    """Return {`MOMENTS`: float64 [5, C]}, the moments of a whole image, which is read some rows at a time.

    Raises:
        DataError: the file cannot be decoded.
    """
    rows = max(1, _PART_PIXELS // image.width)
    boxes = (Box(top, 0, min(rows, image.height - top), image.width) for top in range(0, image.height, rows))
    return {MOMENTS: np.stack(combine(moments_of(image.crop_resize(box, (box.height, box.width))) for box in boxes))}
