"""Features of labeled images, for classification by nearest neighbors and linear classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.features import Encode, encode_images, require_finite_features
from plsc_mae.config.tools import ViewConfig
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers


class LabeledFeatures(NamedTuple):
    """Features [n, D] and class numbers [n]."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def center_crop(config: ViewConfig, size: tuple[int, int]) -> ResizeCenterCrop:
    """Return the evaluation transform, which resizes images and crops their center to `size` = (H, W)."""
    return ResizeCenterCrop(size, int(max(size) / config.crop_pct), config.interpolation)


def encode_labeled(
    encode: Encode, lists: Iterable[ImageList], size: tuple[int, int], config: ViewConfig, world: World
) -> list[LabeledFeatures]:
    """Compute the features of labeled images, cropped to `size` = (H, W); all processes must call.

    `encode` must return a single kind of features.

    Returns:
        One set per list in the main process; an empty list in the others.

    Raises:
        CheckpointError: a feature is NaN or infinite.
    """
    transform, workers = center_crop(config, size), count_workers(config.num_workers)
    parts = []
    for images in lists:
        arrays = encode_images(encode, images, transform, world, batch_size=config.batch_size, num_workers=workers)
        require_finite_features(arrays, "the encoder")
        parts += [LabeledFeatures(features, images.labels) for features in arrays.values()]
    return parts
