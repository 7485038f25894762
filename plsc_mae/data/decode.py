"""Image files to cropped and resized uint8 RGB arrays; the first stage of the data path.

The size is read from the header, so a transform chooses its crop before anything is decoded. Two backends share one
interface. `pil` gives what torchvision gives on PIL images: convert to RGB, crop, resize with antialiasing. `opencv`
is the fast one, for JPEG: libjpeg decodes straight to 1/2, 1/4 or 1/8 size while the crop stays at least as large as
the output, and OpenCV resizes.

Either backend does this with what is not a plain 8-bit RGB file:
    gray                         repeated into three channels
    palette, alpha               converted to RGB, alpha dropped (not blended)
    CMYK                         converted by Pillow, without its color profile
    16-bit                       divided by 256; torchvision clips gray images at 255 instead
    32-bit integer or float      DataError, as no range is agreed
    EXIF orientation             ignored, as torchvision's loader does
    truncated or damaged         DataError; damage that libjpeg can bridge passes unnoticed
    more than 179 million pixels DataError (Pillow's guard against decompression bombs)
    pipe, device, folder         DataError, at once

opencv against pil on random resized crops to 224x224 (Pillow 13; OpenCV 4.11 and 5.0 alike), in levels of 255, and
images per second of reading, decoding, cropping and resizing on one thread of a busy machine (the ratio counts):
                                       mean difference   largest   pil   opencv
    photograph, 500x375, 80 kB                     0.9        32   167      263
    photograph, 512x600, 88 kB                     1.0        56    97      183
    synthetic 1/f noise, 1440x1080, 900 kB         1.7        23    22       48
"""

from __future__ import annotations

import functools
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from plsc_mae.errors import ConfigError, DataError

Backend = Literal["pil", "opencv"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
Pixels = npt.NDArray[np.uint8]

_PIL_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_OPENCV_ENLARGING = {"bicubic": "INTER_CUBIC", "bilinear": "INTER_LINEAR", "lanczos": "INTER_LANCZOS4"}
# A strip of 1 x 10000 pixels resized by its shorter side would ask for gigabytes; the limit is that for decoding.
_MAX_RESIZED_PIXELS = 2 * 89_478_485
_MAX_FILE_BYTES = 8 * _MAX_RESIZED_PIXELS  # of 16-bit RGBA, not compressed


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


class SourceImage(ABC):
    """One image file: its size is known, its pixels are decoded when first asked for."""

    def __init__(self, path: str, header: Image.Image) -> None:
        self.path = path
        self.width, self.height = header.size

    @abstractmethod
    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Cut out `box`, which must lie inside the image, and resize it to `size` = (h, w).

        Returns:
            RGB pixels [h, w, 3].

        Raises:
            DataError: the file cannot be decoded.
        """

    def resize(self, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Resize the whole image to `size` = (h, w); returns and raises as `crop_resize`."""
        if size[0] * size[1] > _MAX_RESIZED_PIXELS:
            raise DataError(
                f"image {self.path} of {self.height}x{self.width} pixels would be resized to {size[0]}x{size[1]}, "
                f"more than {_MAX_RESIZED_PIXELS} pixels; crop it or remove it"
            )
        return self.crop_resize(Box(0, 0, self.height, self.width), size, interpolation)


class PilImage(SourceImage):
    """The parity backend: torchvision's results, any format Pillow reads."""

    def __init__(self, path: str, header: Image.Image) -> None:
        super().__init__(path, header)
        self._header = header

    @functools.cached_property
    def _rgb(self) -> Image.Image:
        with _blaming(self.path):
            return _to_rgb(self._header)

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        crop = self._rgb.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        return np.array(crop.resize((size[1], size[0]), _PIL_FILTERS[interpolation]))


class OpenCVImage(SourceImage):
    """The fast backend, for intact RGB and gray JPEG files.

    From a full-size decode, shrinking averages areas (INTER_AREA) whatever the interpolation, and enlarging uses the
    interpolation asked for; from a reduced decode, Pillow's filter does the rest. A decode is kept, and serves later
    calls that need no finer one.
    """

    def __init__(self, path: str, header: Image.Image, data: bytes) -> None:
        super().__init__(path, header)
        self._pil = PilImage(path, header)
        self._data = np.frombuffer(data, np.uint8)
        self._decoded: tuple[int, Pixels] | None = None

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        decoded = self._decode(_reduction(box, size))
        if decoded is None:  # a JPEG variant OpenCV was not built for
            return self._pil.crop_resize(box, size, interpolation)
        factor, pixels = decoded
        if factor > 1:
            return _resize_reduced(pixels, factor, box, size, interpolation)
        cv2 = _opencv()
        shrinks = box.height >= size[0] and box.width >= size[1]
        method = cv2.INTER_AREA if shrinks else getattr(cv2, _OPENCV_ENLARGING[interpolation])
        crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        rgb: Pixels = cv2.cvtColor(cv2.resize(crop, (size[1], size[0]), interpolation=method), cv2.COLOR_BGR2RGB)
        return rgb

    def _decode(self, factor: int) -> tuple[int, Pixels] | None:
        """Return (reduction, BGR pixels [H, W, 3]) no coarser than `factor`."""
        if self._decoded is None or self._decoded[0] > factor:
            cv2 = _opencv()
            flag = cv2.IMREAD_COLOR if factor == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}")
            pixels = cv2.imdecode(self._data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
            self._decoded = None if pixels is None else (factor, pixels)
        return self._decoded


def open_image(path: str | Path, backend: Backend = "pil") -> SourceImage:
    """Read a file and its header; its pixels are decoded later.

    The opencv backend leaves to Pillow what it would decode differently or not at all: other formats than JPEG, CMYK,
    and JPEGs without an end marker, which OpenCV would fill with gray instead of refusing.

    Raises:
        DataError: the file cannot be read or is not an image.
        ConfigError: the backend is not installed.
    """
    path = str(path)
    require_backend(backend)
    with _blaming(path):
        data = _read(path)
        header = Image.open(io.BytesIO(data))
    fast = header.format == "JPEG" and header.mode in ("RGB", "L") and data.endswith(b"\xff\xd9")
    return OpenCVImage(path, header, data) if backend == "opencv" and fast else PilImage(path, header)


def _read(path: str) -> bytes:
    """Return what a file holds, if it is one of a size that an image can have.

    A pipe would keep the reader waiting, a device may have no end, and a file beyond that would fill the memory.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe, socket or device, not a file")
        if not status.st_size:
            raise ValueError("the file is empty")
        if status.st_size > _MAX_FILE_BYTES:
            raise ValueError(f"the file has {status.st_size / 1e9:.1f} GB, more than any image that would be decoded")
        return file.read()


def require_backend(backend: Backend) -> None:
    """Raise ConfigError unless the packages behind `backend` are installed."""
    if backend == "opencv":
        _opencv()


@functools.cache
def _opencv() -> ModuleType:
    """Import OpenCV on first use, as the pil backend does not need it."""
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "--image_backend opencv needs the package opencv-python-headless: install it, or pass --image_backend pil"
        ) from error
    cv2.setNumThreads(0)  # workers are the parallelism; threads of their own would only fight for the same cores
    module: ModuleType = cv2
    return module


def _reduction(box: Box, size: tuple[int, int]) -> int:
    """Return the largest of libjpeg's factors 8, 4, 2, 1 that leaves the crop at least as large as the output."""
    for factor in (8, 4, 2):
        if box.height // factor >= size[0] and box.width // factor >= size[1]:
            return factor
    return 1


def _resize_reduced(
    pixels: Pixels, factor: int, box: Box, size: tuple[int, int], interpolation: Interpolation
) -> Pixels:
    """Cut `box` of the full image out of BGR pixels reduced by `factor`, with Pillow's filter.

    Box edges fall between reduced pixels. OpenCV would need whole ones, and the crop would shift by up to one.
    """
    image = Image.fromarray(_opencv().cvtColor(pixels, _opencv().COLOR_BGR2RGB))
    right = min((box.left + box.width) / factor, image.width)
    bottom = min((box.top + box.height) / factor, image.height)
    edges = (box.left / factor, box.top / factor, right, bottom)
    return np.array(image.resize((size[1], size[0]), _PIL_FILTERS[interpolation], box=edges))


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow opens 16-bit PGM, and in older versions 16-bit PNG, as 32-bit "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) are not supported, convert it to 8 or 16 bits")
    return image.convert("RGB")


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a DataError that names the file."""
    try:
        yield
    except (
        Exception
    ) as error:  # Pillow's plug-ins raise what their parsing runs into: OSError, SyntaxError, struct.error
        raise DataError(f"cannot read image {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text names a memory address, not the file
        return "it is not an image of a known format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
