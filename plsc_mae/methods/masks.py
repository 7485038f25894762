"""Transforms that add the mask of a sample, or noise for it, drawn from the sample's own generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plsc_mae.data.decode import SourceImage
from plsc_mae.data.transforms import Sample, Transform

MaskDraw = Callable[[np.random.Generator], np.ndarray]


class WithNoise:
    """A transform that adds "noise", float32 [L], from which the network derives the mask."""

    def __init__(self, transform: Transform, num_patches: int) -> None:
        self.transform = transform
        self.num_patches = num_patches

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Return the transformed sample with noise that is drawn after it."""
        sample = self.transform(image, rng)
        return {**sample, "noise": rng.random(self.num_patches, dtype=np.float32)}


class WithMask:
    """A transform that adds "mask", bool [L], True = hidden."""

    def __init__(self, transform: Transform, draw_mask: MaskDraw) -> None:
        self.transform, self.draw_mask = transform, draw_mask

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Return the transformed sample with a mask that is drawn after it."""
        sample = self.transform(image, rng)
        return {**sample, "mask": self.draw_mask(rng).reshape(-1)}
