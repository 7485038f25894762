"""Features of labeled images, for classification by nearest neighbors and linear classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.class_counts import describe_majority
from plsc_mae.analysis.features import Encode, Rows, encode_images, require_finite_features
from plsc_mae.config.features import ViewConfig
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers


class LabeledFeatures(NamedTuple):
    """Features [n, D], float32 or float16, and class numbers [n] of the readable images."""

    features: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    def describe_majority(self, classes: Sequence[str]) -> str:
        """Return a sentence part about the accuracy of always answering the most frequent class of these images.

        `classes` are the names by class number; without any, the numbers are the names.
        """
        present, images = np.unique(self.labels, return_counts=True)
        return describe_majority(images, [classes[number] if classes else str(number) for number in present])


class EncodedLists(NamedTuple):
    """Features of several lists of labeled images."""

    parts: list[LabeledFeatures]  # one set of features per list in the main process; empty in other processes
    unreadable: int  # number of images that could not be read and are left out
    # indices of the readable images in each list; empty for features that were loaded from a file
    kept: Sequence[npt.NDArray[np.int64]] = ()


def center_crop(config: ViewConfig, size: tuple[int, int]) -> ResizeCenterCrop:
    """Return the evaluation transform, which resizes images and crops their center to `size` = (H, W)."""
    return ResizeCenterCrop(size, int(max(size) / config.crop_pct), config.interpolation)


def encode_labeled(
    encode: Encode,
    lists: Sequence[ImageList],
    size: tuple[int, int],
    config: ViewConfig,
    world: World,
    *,
    pixel_format: PixelFormat = RGB,
    rows: Callable[[ImageList], Rows | None] = lambda _: None,
    report: bool = True,
) -> EncodedLists:
    """Compute the features of labeled images, cropped to `size` = (H, W); all processes must call.

    `encode` must return a single kind of features. `rows` returns the destination of the features of a list, None for
    memory, and may raise. The other arguments are those of `encode_images`.

    Raises:
        CheckpointError: a feature is NaN or infinite; raised in the main process only.
        DataError: see `encode_dataset`.
    """
    transform, workers = center_crop(config, size), count_workers(config.num_workers)
    parts, unreadable, kept = [], 0, []
    for images in lists:
        destination = rows(images)
        world.barrier()  # `rows` may take longer than the timeout of a reduction
        encoded = encode_images(
            encode,
            images,
            transform,
            world,
            batch_size=config.batch_size,
            num_workers=workers,
            bad_image=config.bad_image,
            pixel_format=pixel_format,
            rows=destination,
            report=report,
        )
        require_finite_features(encoded.arrays, "the encoder")
        parts += [LabeledFeatures(features, images.labels[encoded.kept]) for features in encoded.arrays.values()]
        unreadable += len(encoded.unreadable)
        kept.append(encoded.kept)
    return EncodedLists(parts, unreadable, kept)
