"""Data set for commands with a result per image, such as predictions, features and accuracies.

Training can replace an unreadable file by another image. Here the replacement would count as a result of the file, so
an unreadable file gives a black image that is marked as unreadable, and the caller leaves out its result.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from plsc_mae.data.decode import Box, Interpolation, SourceImage
from plsc_mae.data.file_dataset import FileDataset
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import PixelFormat, Pixels
from plsc_mae.data.seeding import SampleKey, sample_rng
from plsc_mae.data.tiles import center_tile
from plsc_mae.data.transfer import HOST_PREFIX, INDEX
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.errors import DataError
from plsc_mae.wording import counted

UNREADABLE = HOST_PREFIX + "unreadable"  # mark in samples and batches: int64, 1 for an unreadable file, else 0
_BLANK_SIDE = 256  # pixels
_MAX_NAMED = 100  # unreadable files named in the log per call

logger = logging.getLogger(__name__)


class BlankImage(SourceImage):
    """Black image in place of an unreadable file."""

    def __init__(self, path: str, pixel_format: PixelFormat) -> None:
        self.path, self.width, self.height, self._format = path, _BLANK_SIDE, _BLANK_SIDE, pixel_format

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Return black pixels [h, w, C] for `size` = (h, w)."""
        return np.zeros((*size, self._format.channels), self._format.dtype)


class EvaluationDataset(FileDataset):
    """Data set of transformed images that never replaces an unreadable file by another image.

    A sample is the transform's arrays plus `INDEX`, "label", "skipped", which is 0, and `UNREADABLE`. With
    `bad_image="skip"`, the sample of an unreadable file is black and marked as unreadable. With `PixelFormat.tile`, a
    sample is taken from the center tile of the file.

    Args:
        images: files and labels.
        transform: maps a SourceImage and the sample's generator to named arrays.
        reading: further arguments of `FileDataset`.
    """

    def __init__(self, images: ImageList, transform: Transform, **reading: Any) -> None:
        super().__init__(images, transform, **reading)
        self._number = 0

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = functools.partial(sample_rng, self.seed, *key)
        try:
            image = center_tile(self._open(key.index), self.pixel_format.tile)
            sample, unreadable = self.transform(image, rng()), 0
        except DataError as error:
            self._require_skipping(error)
            sample, unreadable = self.transform(BlankImage(self.name(key.index), self.pixel_format), rng()), 1
        numbers = {INDEX: key.index, "skipped": 0, UNREADABLE: unreadable}
        return {
            **sample,
            **{name: np.asarray(number, np.int64) for name, number in numbers.items()},
            "label": np.asarray(self.images.labels[key.index]),
        }

    def reason(self, index: int) -> str:
        """Return the error message about an unreadable file; the file is read again unless it is known to be bad.

        If the file can be read now, the message gives no cause.
        """
        try:
            image = center_tile(self._open(index), self.pixel_format.tile)
            self.transform(image, sample_rng(self.seed, 0, index))
        except DataError as error:
            return str(error)
        return f"{self.name(index)} could not be read"

    def log_unreadable(self, indices: Sequence[int]) -> None:
        """Log the names of unreadable files and the reasons: no file of the list twice, at most 100 files per call."""
        new = [index for index in indices if self.images.unreadable.add(index)]
        for index in new[:_MAX_NAMED]:
            logger.warning("%s; left out", self.reason(index))
        if len(new) > _MAX_NAMED:
            logger.warning("and %s, which are left out too", counted(len(new) - _MAX_NAMED, "more file"))

    def log_number(self, unreadable: int) -> None:
        """Log `unreadable`, the number of unreadable files in all processes, if it differs from the last call's."""
        if unreadable != self._number:
            logger.warning("%d of %d images cannot be read and are left out of the evaluation", unreadable, len(self))
        self._number = unreadable

    def _count_bad(self, index: int) -> None:
        self.images.unreadable.add(index)  # the caller logs its name
