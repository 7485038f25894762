"""Batches of random pixels, for measurements: the cost of a step does not depend on the image content."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from plsc_mae.data.decode import Box, Interpolation, SourceImage
from plsc_mae.data.pixels import RGB, PixelFormat, Pixels
from plsc_mae.data.transfer import device_batch
from plsc_mae.data.transforms import Transform


class RandomImage(SourceImage):
    """Image of random pixels, drawn when a crop is taken."""

    def __init__(self, rng: np.random.Generator, pixel_format: PixelFormat = RGB) -> None:
        self.path, self.width, self.height, self.rng, self.format = "random", 256, 256, rng, pixel_format

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Draw random pixels [H, W, C] for `size` = (H, W); `box` and `interpolation` are ignored."""
        return self.rng.integers(0, 256, (*size, self.format.channels), np.uint8).astype(self.format.dtype, copy=False)


def random_batch(
    transform: Transform, batch_size: int, seed: int, *, labeled: bool = False, pixel_format: PixelFormat = RGB
) -> dict[str, Any]:
    """Transform random images and return the batch by name, on the device; `labeled` adds "label", which is all 0."""
    rng = np.random.default_rng(seed)
    samples = [transform(RandomImage(rng, pixel_format), rng) for _ in range(batch_size)]
    batch = device_batch({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
    return {**batch, "label": paddle.zeros([batch_size], "int64")} if labeled else batch
