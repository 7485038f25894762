"""Data set of images whose results belong to the images, such as predictions, features and accuracies.

In training, another image can replace one that cannot be read. Here it would be counted as a result. So an unreadable
file gives a black image that is marked as unreadable, and the caller leaves out its result.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from plsc_mae.data.decode import Backend, Box, Interpolation, Pixels, SourceImage, require_backend
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.seeding import SampleKey, sample_rng
from plsc_mae.data.transfer import HOST_PREFIX, INDEX
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.data.workers import CurrentRead
from plsc_mae.errors import DataError, remedies

UNREADABLE = (
    HOST_PREFIX + "unreadable"
)  # name of the mark in samples and batches: int64, 1 for an unreadable file, else 0
_BLANK_SIDE = 256  # pixels
_MAX_NAMED = 100  # unreadable files that the log names

logger = logging.getLogger(__name__)


class BlankImage(SourceImage):
    """Black image in place of an unreadable file."""

    def __init__(self, path: str) -> None:
        self.path, self.width, self.height = path, _BLANK_SIDE, _BLANK_SIDE

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Return black pixels, uint8 [h, w, 3] for `size` = (h, w)."""
        return np.zeros((*size, 3), np.uint8)


class EvaluationDataset:
    """Data set of transformed images that never replaces an unreadable file by another image.

    A sample is the transform's arrays plus `INDEX`, "label", "skipped", which is 0, and `UNREADABLE`.

    Args:
        images: files and labels.
        transform: maps a SourceImage and the sample's generator to named arrays.
        seed: seeds the generators together with epoch and index.
        backend: image decoder.
        bad_image: "error" raises DataError for an unreadable file; "skip" marks its sample as unreadable.
        pixel_range: range of images with more than 8 bits per band; None for the default.

    Attributes:
        current_read: records the number of the file that is about to be read; None records nothing.
    """

    def __init__(
        self,
        images: ImageList,
        transform: Transform,
        *,
        seed: int = 0,
        backend: Backend = "pil",
        bad_image: Literal["error", "skip"] = "skip",
        pixel_range: PixelRange | None = None,
    ) -> None:
        require_backend(backend)
        self.images, self.transform, self.seed = images, transform, seed
        self.backend, self.bad_image, self.pixel_range = backend, bad_image, pixel_range
        self.current_read: CurrentRead | None = None
        self._named: set[int] = set()
        self._number = 0
        self._known_bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = functools.partial(sample_rng, self.seed, key.epoch, key.index)
        try:
            sample, unreadable = self.transform(self.open(key.index), rng()), 0
        except DataError as error:
            if self.bad_image == "error":
                raise DataError(f"{error}; {remedies('repair or remove the file', 'pass --bad_image skip')}") from error
            sample, unreadable = self.transform(BlankImage(self.name(key.index)), rng()), 1
        numbers = {INDEX: key.index, "label": self.images.labels[key.index], "skipped": 0, UNREADABLE: unreadable}
        return sample | {name: np.asarray(number, np.int64) for name, number in numbers.items()}

    def open(self, index: int) -> SourceImage:
        """Open a file.

        Raises:
            DataError: the file is known to be bad, or cannot be opened.
        """
        if index in self._known_bad:
            raise DataError(self._known_bad[index])
        if self.current_read is not None:
            self.current_read.set(index)
        return self.images.open(index, self.backend, self.pixel_range)

    def reason(self, index: int) -> str:
        """Return a sentence that names an unreadable file and the reason, which is found by reading it again."""
        try:
            self.transform(self.open(index), sample_rng(self.seed, 0, index))
        except DataError as error:
            return str(error)
        return f"{self.name(index)} could not be read"

    def log_unreadable(self, indices: Sequence[int]) -> None:
        """Log the names of unreadable files and the reasons: each file once, and at most 100 files per call."""
        new = [index for index in indices if index not in self._named]
        self._named.update(new)
        for index in new[:_MAX_NAMED]:
            logger.warning("%s; left out", self.reason(index))
        if len(new) > _MAX_NAMED:
            logger.warning("and %d more files, which are left out too", len(new) - _MAX_NAMED)

    def log_number(self, unreadable: int) -> None:
        """Log `unreadable`, the number of unreadable files in all processes, if it differs from the last call's."""
        if unreadable != self._number:
            logger.warning("%d of %d images cannot be read and are left out of the evaluation", unreadable, len(self))
        self._number = unreadable

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return self.images.path(index)

    def mark_bad(self, index: int, reason: str) -> bool:
        """Treat a file as unreadable from now on and return True if `bad_image` is "skip"; otherwise return False.

        Args:
            index: number of the file.
            reason: a message that names the file.
        """
        if self.bad_image == "skip":
            self._known_bad[index] = reason
            self._named.add(index)  # by the caller
        return self.bad_image == "skip"
