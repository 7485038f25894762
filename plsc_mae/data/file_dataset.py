"""Base class of data sets of image files: opens a file by its index and remembers files that cannot be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from plsc_mae.data.decode import Backend, SourceImage, require_backend
from plsc_mae.data.listing import ImageList
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.transforms import Transform
from plsc_mae.data.workers import CurrentRead
from plsc_mae.errors import DataError, remedies


class FileDataset(ABC):
    """Images of a list of files; a subclass defines the samples.

    Args:
        images: files and labels.
        transform: maps a SourceImage and the sample's generator to named arrays.
        seed: seeds the generators together with epoch and index.
        backend: image decoder.
        bad_image: "error" raises DataError for a file that cannot be decoded; "skip" continues without that file.
        pixel_format: format of the pixels.

    Attributes:
        current_read: receives the index of each file before it is read; None disables the record.

    Raises:
        ConfigError: the package of the backend cannot be imported.
    """

    def __init__(
        self,
        images: ImageList,
        transform: Transform,
        *,
        seed: int = 0,
        backend: Backend = "pil",
        bad_image: Literal["error", "skip"] = "error",
        pixel_format: PixelFormat = RGB,
    ) -> None:
        require_backend(backend)
        self.images, self.transform, self.seed = images, transform, seed
        self.backend, self.bad_image, self.pixel_format = backend, bad_image, pixel_format
        self.current_read: CurrentRead | None = None
        self._known_bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return self.images.path(index)

    def mark_bad(self, index: int, reason: str) -> bool:
        """Treat a file as unreadable from now on and return True if `bad_image` is "skip"; otherwise return False.

        Args:
            index: index of the file.
            reason: a message that names the file; the caller logs it.
        """
        if self.bad_image == "skip":
            self._known_bad[index] = reason
            self._count_bad(index)
        return self.bad_image == "skip"

    @abstractmethod
    def _count_bad(self, index: int) -> None:
        """Record a file that `mark_bad` has marked."""

    def _open(self, index: int) -> SourceImage:
        """Open a file; raise DataError if it is known to be bad. For other errors see `open_image`."""
        if index in self._known_bad:
            raise DataError(self._known_bad[index])
        if self.current_read is not None:
            self.current_read.set(index)
        return self.images.open(index, self.backend, self.pixel_format)

    def _require_skipping(self, error: DataError) -> None:
        """Raise DataError with the remedies unless `bad_image` is "skip"."""
        if self.bad_image == "error":
            raise DataError(f"{error}; {remedies('repair or remove the file', 'pass --bad_image skip')}") from error
