"""Tiles of large images: squares from which samples are taken, so that a crop reads a small part of a file."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np

from plsc_mae.data.decode import Box, Interpolation, SourceImage
from plsc_mae.data.listing import ImageList, PathTable
from plsc_mae.data.pixels import PixelFormat, Pixels
from plsc_mae.errors import DataError
from plsc_mae.wording import counted

_DECODED_BYTES = 4  # per pixel, in Pillow
_LARGE_BYTES = 500_000_000

logger = logging.getLogger(__name__)


class TileImage(SourceImage):
    """Part of an image, used as an image of its own."""

    def __init__(self, image: SourceImage, box: Box) -> None:
        self.path, self.height, self.width = image.path, box.height, box.width
        self._image, self._box, self.decodes_whole = image, box, image.decodes_whole

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        inside = box._replace(top=box.top + self._box.top, left=box.left + self._box.left)
        return self._image.crop_resize(inside, size, interpolation)


def random_tile(image: SourceImage, side: int, rng: np.random.Generator) -> SourceImage:
    """Return a random tile of up to `side` x `side` pixels; the image itself if `side` is 0.

    `rng` draws top, then left; nothing is drawn if `side` is 0.
    """
    if not side:
        return image
    height, width = min(side, image.height), min(side, image.width)
    top = int(rng.random() * (image.height - height + 1))
    left = int(rng.random() * (image.width - width + 1))
    return TileImage(image, Box(top, left, height, width))


def center_tile(image: SourceImage, side: int) -> SourceImage:
    """Return the tile of up to `side` x `side` pixels in the center; the image itself if `side` is 0."""
    if not side:
        return image
    height, width = min(side, image.height), min(side, image.width)
    return TileImage(image, Box((image.height - height) // 2, (image.width - width) // 2, height, width))


def repeat_by_tiles(images: ImageList, pixel_format: PixelFormat) -> ImageList:
    """Repeat each file in the list by the number of tiles that a grid over it would have.

    An epoch's tiles then have about the same number of pixels as all files together. They are drawn at random, so some
    pixels are seen several times and others not at all. A file that cannot be opened is listed once. If the format has
    no tile, the list is returned unchanged.
    """
    side = pixel_format.tile
    if not side:
        return images
    counts, largest = np.ones(len(images), np.int64), None
    for index in range(len(images)):
        try:
            image = images.open(index, pixel_format=pixel_format)
        except DataError:  # reported by the check of the files, or when the file is read
            continue
        counts[index] = math.ceil(image.height / side) * math.ceil(image.width / side)
        if image.decodes_whole and (largest is None or image.height * image.width > largest.height * largest.width):
            largest = image
    logger.info(
        "%s in %s of %d x %d pixels", counted(len(images), "image"), counted(int(counts.sum()), "tile"), side, side
    )
    if largest is not None:
        _warn_of_memory(largest)
    rows = np.repeat(np.arange(len(images)), counts)
    paths = PathTable(images.paths[int(row)] for row in rows)
    return replace(images, paths=paths, labels=images.labels[rows])


def _warn_of_memory(image: SourceImage) -> None:
    """Warn if an image that is decoded whole takes much memory."""
    size = _DECODED_BYTES * image.height * image.width
    if size >= _LARGE_BYTES:
        logger.warning(
            "%s has %d x %d pixels in a format that is decoded whole for a sample, which takes about %.1f GB in every "
            "loader process; write it as TIFF in tiles, of which a sample reads its part",
            *(image.path, image.height, image.width, size / 1e9),
        )


def without_repeats(images: ImageList) -> ImageList:
    """Return the list without the consecutive repeats of files that `repeat_by_tiles` adds."""
    rows = [row for row in range(len(images)) if row == 0 or images.paths[row] != images.paths[row - 1]]
    if len(rows) == len(images):
        return images
    return replace(images, paths=PathTable(images.paths[row] for row in rows), labels=images.labels[rows])
