"""Decodes image files to cropped and resized arrays, by default uint8 RGB: the first stage of the data pipeline.

The size is read from the header, so a transform chooses its crop before the file is decoded. Two backends share one
interface. `pil` reproduces torchvision on PIL images: convert to RGB, crop, resize with antialiasing. `opencv` is
faster on JPEG files: libjpeg decodes directly to 1/2, 1/4 or 1/8 size as long as the crop stays at least as large as
the output, and OpenCV resizes.

If a run's images are RGB, both backends treat files that are not plain 8-bit RGB as follows:
    gray                         repeated into three channels
    palette, alpha, 4th band     converted to RGB, alpha or the fourth band dropped (not blended)
    5 bands and more             the first three of 8-bit TIFF files with up to 6 bands; otherwise DataError
    CMYK                         converted by Pillow, color profile ignored
    16-bit                       divided by 256, or mapped by a PixelRange; torchvision clips gray images at 255
    32-bit integer or float      mapped by a PixelRange; without one DataError, because no value range is agreed
    several pages or frames      the first one
    EXIF orientation             ignored, as in torchvision's loader
    truncated or damaged         DataError; damage that libjpeg can conceal is not detected
    more than 179 million pixels DataError (Pillow's guard against decompression bombs), except with tiles
    pipe, device, folder         DataError, immediately

Differences between the backends on random resized crops to 224x224, in levels of 0..255 (Pillow 13; the same with
OpenCV 4.11 and 5.0), and throughput of reading, decoding, cropping and resizing in images per second, on one thread of
a busy machine (compare the ratio, not the absolute numbers):
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
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import IO, Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from plsc_mae.data import depth
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.folder_walk import ARRAY_EXTENSIONS
from plsc_mae.data.opencv import load_opencv
from plsc_mae.data.packed.members import open_member
from plsc_mae.data.pixels import RGB, PixelFormat, Pixels, choose_bands, resize_pixels, take_bands, to_pixels
from plsc_mae.data.raster import TIFF_SUFFIXES, Raster, open_raster, reads_regions
from plsc_mae.data.unreadable import CANNOT_READ
from plsc_mae.errors import ConfigError, DataError

Backend = Literal["pil", "opencv"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]

_PIL_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_OPENCV_UPSCALING = {"bicubic": "INTER_CUBIC", "bilinear": "INTER_LINEAR", "lanczos": "INTER_LANCZOS4"}
# Resizing a strip of 1 x 10000 pixels by its shorter side would need gigabytes. The limit equals Pillow's for decoding.
_MAX_RESIZED_PIXELS = 2 * 89_478_485
_SAMPLED_SIDE = 2048  # pixels
_SAMPLED_ROWS = 256  # in memory at a time
_MAX_FILE_BYTES = 8 * _MAX_RESIZED_PIXELS  # uncompressed 16-bit RGBA


class Box(NamedTuple):
    """Rectangle in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class SourceImage(ABC):
    """Image of known size; in most formats, the pixels of a file are decoded on first use.

    Attributes:
        decodes_whole: whether a crop of a file decodes all of its pixels.
    """

    decodes_whole = True

    def __init__(self, path: str, header: Image.Image) -> None:
        self.path = path
        self.width, self.height = header.size

    @abstractmethod
    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Crop `box`, which must lie inside the image, and resize it to `size` = (h, w).

        Returns:
            Pixels [h, w, C] of the type of the run's PixelFormat.

        Raises:
            DataError: the file cannot be decoded.
        """

    def resize(self, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Resize the whole image to `size` = (h, w).

        Returns:
            Pixels [h, w, C].

        Raises:
            DataError: the file cannot be decoded, or the result would exceed 179 million pixels.
        """
        if size[0] * size[1] > _MAX_RESIZED_PIXELS:
            raise DataError(
                f"image {self.path} of {self.height}x{self.width} pixels would be resized to {size[0]}x{size[1]}, "
                f"more than the limit of {_MAX_RESIZED_PIXELS} pixels; crop or remove the image"
            )
        return self.crop_resize(Box(0, 0, self.height, self.width), size, interpolation)


class PilImage(SourceImage):
    """8-bit RGB image that Pillow crops and resizes, as in torchvision."""

    def __init__(
        self, path: str, header: Image.Image, data: bytes = b"", pixel_range: PixelRange | None = None
    ) -> None:
        super().__init__(path, header)
        self._header, self._data, self._range = header, data, pixel_range

    @functools.cached_property
    def _rgb(self) -> Image.Image:
        with as_data_error(self.path):
            if not depth.is_deep(self._header):
                return _to_rgb(self.path, self._header)
            if self._range is None:
                return _deep_to_rgb(self.path, self._header)
            if depth.has_extra_bands(self._header):
                depth.log_dropped_bands(self.path)
            values = depth.to_8_bits(depth.read_values(self._header, self._data), self._range)
            return Image.fromarray(values).convert("RGB")

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        crop = self._rgb.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        return np.array(crop.resize((size[1], size[0]), _PIL_FILTERS[interpolation]))


class OpenCVImage(SourceImage):
    """Image of the opencv backend, which reads intact RGB and gray JPEG files.

    After a full-size decode, OpenCV averages areas (INTER_AREA) if neither side grows, else it uses the requested
    interpolation. After a reduced decode, Pillow's filter resizes to the final size. The decoded pixels are cached and
    reused by later calls that need no higher resolution.
    """

    def __init__(self, path: str, header: Image.Image, data: bytes) -> None:
        super().__init__(path, header)
        self._pil = PilImage(path, header)
        self._data = np.frombuffer(data, np.uint8)
        self._decoded: tuple[int, Pixels] | None = None

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        decoded = self._decode(_reduction(box, size))
        if decoded is None:  # a JPEG variant that OpenCV cannot decode
            return self._pil.crop_resize(box, size, interpolation)
        factor, pixels = decoded
        if factor > 1:
            reduced = Image.fromarray(_opencv().cvtColor(pixels, _opencv().COLOR_BGR2RGB))
            return _resize_reduced(reduced, factor, box, size, interpolation)
        cv2 = _opencv()
        downscales = box.height >= size[0] and box.width >= size[1]
        method = cv2.INTER_AREA if downscales else getattr(cv2, _OPENCV_UPSCALING[interpolation])
        crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        rgb: Pixels = cv2.cvtColor(cv2.resize(crop, (size[1], size[0]), interpolation=method), cv2.COLOR_BGR2RGB)
        return rgb

    def _decode(self, factor: int) -> tuple[int, Pixels] | None:
        """Return (reduction factor <= `factor`, BGR pixels [H, W, 3]), or None if OpenCV cannot decode the file."""
        if self._decoded is None or self._decoded[0] > factor:
            cv2 = _opencv()
            flag = cv2.IMREAD_COLOR if factor == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}")
            pixels = cv2.imdecode(self._data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
            self._decoded = None if pixels is None else (factor, pixels)
        return self._decoded


class RasterImage(SourceImage):
    """Image of any number of bands and any type of values; a crop reads only its region where the format allows it.

    Raises:
        ValueError: the bands do not fit the channels.
        Exception: of other types: a file that must be decoded to count its bands is damaged.
    """

    def __init__(self, path: str, raster: Raster, pixel_format: PixelFormat) -> None:
        self.path, self._raster, self._format = path, raster, pixel_format
        self.height, self.width, count = raster.shape
        self._bands = choose_bands(count, pixel_format)
        if pixel_format.is_rgb and count > len(self._bands) and not raster.has_alpha:
            depth.log_dropped_bands(path)
        self.decodes_whole = raster.decodes_whole
        self._last: tuple[Box, Pixels] | None = None

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        return resize_pixels(self._region(box), size, _PIL_FILTERS[interpolation])

    def _region(self, box: Box) -> Pixels:
        """Return the pixels [h, w, C] of a region; the last region is cached for a second view of it."""
        if self._last is None or self._last[0] != box:
            with as_data_error(self.path):
                rows, columns = (slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
                values = take_bands(self._raster.read(rows, columns), self._bands)
                self._last = box, to_pixels(values, self._format, self.path)
        return self._last[1]


class ReducedJpeg(SourceImage):
    """JPEG file of any size, decoded at 1/8, 1/4 or 1/2 size if the crop stays at least as large as the output."""

    def __init__(self, path: str, header: Image.Image, data: bytes) -> None:
        super().__init__(path, header)
        self._data = data
        self._decoded: tuple[int, Image.Image] | None = None

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """See `SourceImage.crop_resize`."""
        factor = _reduction(box, size)
        if self._decoded is None or self._decoded[0] > factor:
            with as_data_error(self.path), any_number_of_pixels():
                file = Image.open(io.BytesIO(self._data))
                file.draft("RGB", (self.width // factor, self.height // factor))
                self._decoded = factor, _to_rgb(self.path, file)
        reached, image = self._decoded
        if reached > 1:
            return _resize_reduced(image, reached, box, size, interpolation)
        crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        return np.array(crop.resize((size[1], size[0]), _PIL_FILTERS[interpolation]))


def open_image(path: str | Path, backend: Backend = "pil", pixel_format: PixelFormat = RGB) -> SourceImage:
    """Read a file and parse its header; in most formats, pixels are decoded later.

    The backend reads RGB images; `plsc_mae.data.raster` reads arrays and images with other channels. If
    `pixel_format.tile` is positive, neither the size of a file nor its number of pixels is limited. Then `raster` also
    reads RGB images in TIFF files, and JPEG files are decoded at a reduced size where the crop allows it.

    The opencv backend decodes only JPEG files that are RGB or gray and have an end marker, because OpenCV would fill
    truncated ones with gray instead of rejecting them. It is not used for other files, nor if there is a tile.

    Raises:
        DataError: the file cannot be read as an image of this format.
        ConfigError: a package that the backend, the file's format or its archive needs cannot be imported.
    """
    path = str(path)
    require_backend(backend)
    if reads_bands(path, pixel_format) and reads_regions(path) and os.path.isfile(path):
        with as_data_error(path), open_regular(path, any_size=True):
            return RasterImage(path, open_raster(path), pixel_format)
    with as_data_error(path):
        data = read_content(path, any_size=pixel_format.tile > 0)
    return open_content(path, data, backend, pixel_format)


def open_content(path: str, data: bytes, backend: Backend = "pil", pixel_format: PixelFormat = RGB) -> SourceImage:
    """Open the content of a file; for the errors see `open_image`.

    Messages name `path`, whose suffix distinguishes arrays and TIFF files from other formats.
    """
    pixel_range, any_size = pixel_format.range, pixel_format.tile > 0
    with as_data_error(path), any_number_of_pixels() if any_size else nullcontext():
        if reads_bands(path, pixel_format):
            gray = pixel_format.channels == 1 and not pixel_format.bands
            return RasterImage(path, open_raster(path, data, gray=gray), pixel_format)
        header = depth.open_header(path, data, pixel_range)
        if depth.has_pages(header):
            depth.log_loss("pages", path, "has several pages or frames; only the first one is used")
    if any_size and header.format == "JPEG":
        return ReducedJpeg(path, header, data)
    fast = header.format == "JPEG" and header.mode in ("RGB", "L") and data.endswith(b"\xff\xd9")
    return (
        OpenCVImage(path, header, data) if backend == "opencv" and fast else PilImage(path, header, data, pixel_range)
    )


def deep_values(path: str, pixel_format: PixelFormat = RGB) -> Iterator[depth.Values]:
    """Yield the values of a file with more than 8 bits per band; nothing is yielded for uint8 and boolean values.

    Of a file that is read by bands, only the center of up to 2048 x 2048 pixels is yielded, in one or more parts.

    Raises:
        Exception: of many types: the file cannot be read.
    """
    if not reads_bands(path, pixel_format):
        whole = depth.deep_values(read_content(path))
        yield from () if whole is None else (whole,)
        return
    raster = open_values(path)
    rows, columns = (
        slice((side - min(side, _SAMPLED_SIDE)) // 2, (side + min(side, _SAMPLED_SIDE)) // 2)
        for side in raster.shape[:2]
    )
    bands = choose_bands(raster.shape[2], pixel_format)
    step = _SAMPLED_SIDE if raster.decodes_whole else _SAMPLED_ROWS
    for top in range(rows.start, rows.stop, step):
        values = take_bands(raster.read(slice(top, min(top + step, rows.stop)), columns), bands)
        if values.dtype in (np.uint8, np.bool_):
            return
        yield values


def open_values(path: str) -> Raster:
    """Open a file or a member of an archive as the values that it stores, whatever the format of a run's pixels.

    Raises:
        Exception: of many types: the file cannot be read.
    """
    mapped = reads_regions(path) and os.path.isfile(path)
    return open_raster(path, None if mapped else read_content(path))


def reads_bands(path: str, pixel_format: PixelFormat) -> bool:
    """Return whether `plsc_mae.data.raster` reads a file by its bands; otherwise a backend reads it as 8-bit RGB."""
    suffixes = (*ARRAY_EXTENSIONS, *(TIFF_SUFFIXES if pixel_format.tile else ()))
    return not pixel_format.is_rgb or path.lower().endswith(suffixes)


@contextmanager
def any_number_of_pixels() -> Iterator[None]:
    """Disable Pillow's limit on the number of pixels in the context, for all threads of the process."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_content(path: str, *, any_size: bool = False) -> bytes:
    """Return the content of an image file or of a member of an archive; for the errors see `open_regular`."""
    with open_regular(path, any_size=any_size) as (file, _):
        return file.read()


@contextmanager
def open_regular(path: str, *, any_size: bool = False) -> Iterator[tuple[IO[bytes], int]]:
    """Open a regular file or a member of an archive; yield the open file and its size in bytes.

    `any_size` disables the size limit.

    Raises:
        OSError: the file or member does not exist or cannot be read.
        ValueError: the path is a pipe (which could block), a device (which may never end), an empty file, a file too
            large to be an image, or a member that is damaged or in a form that is not supported.
        DataError: the archive cannot be used, see `plsc_mae.data.packed.members.open_archive`.
        ConfigError: the package that reads the archive cannot be imported.
    """
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(open(path, "rb", opener=_open_without_waiting))
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is a pipe, socket or device, not a regular file")
            size = status.st_size
        except NotADirectoryError:  # a part of the path is a file
            file, size = open_member(path)
            stack.enter_context(file)
        if not size:
            raise ValueError("the file is empty")
        if size > _MAX_FILE_BYTES and not any_size:
            raise ValueError(f"the file has {size / 1e9:.1f} GB, more than the limit of {_MAX_FILE_BYTES / 1e9:.1f} GB")
        yield file, size


def _open_without_waiting(path: str, flags: int) -> int:
    """Return a descriptor of a file, without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def require_backend(backend: Backend) -> None:
    """Raise ConfigError if `backend` needs a package that cannot be imported."""
    if backend == "opencv":
        _opencv()


def _opencv() -> ModuleType:
    """Return OpenCV for the opencv backend; raise ConfigError if it cannot be imported."""
    try:
        return load_opencv()
    except ImportError as error:
        raise ConfigError(f"--image_backend opencv: {error}; or pass --image_backend pil") from error


def _reduction(box: Box, size: tuple[int, int]) -> int:
    """Return the largest libjpeg reduction (8, 4 or 2) that leaves the crop at least as large as the output, else 1."""
    for factor in (8, 4, 2):
        if box.height // factor >= size[0] and box.width // factor >= size[1]:
            return factor
    return 1


def _resize_reduced(
    image: Image.Image, factor: int, box: Box, size: tuple[int, int], interpolation: Interpolation
) -> Pixels:
    """Crop `box`, in full-size coordinates, from an image reduced by `factor` and resize it with Pillow's filter.

    The edges of the box may fall between reduced pixels. Pillow accepts fractional edges; OpenCV would shift the crop
    by up to one reduced pixel.
    """
    right = min((box.left + box.width) / factor, image.width)
    bottom = min((box.top + box.height) / factor, image.height)
    edges = (box.left / factor, box.top / factor, right, bottom)
    return np.array(image.resize((size[1], size[0]), _PIL_FILTERS[interpolation], box=edges))


def _to_rgb(path: str, image: Image.Image) -> Image.Image:
    if depth.is_unmarked_band(image):
        depth.log_dropped_bands(path)
    image.load()
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy RGB
    depth.log_lost_alpha(path, image)
    return rgb


def _deep_to_rgb(path: str, image: Image.Image) -> Image.Image:
    """Convert a 16-bit image to 8-bit RGB by dividing by 256; raise ValueError for other depths."""
    if not depth.has_default_range(image):
        kind = "32-bit" if image.mode == "F" else "32-bit or signed 16-bit"  # Pillow opens both as "I"
        text = f"it has {kind} pixels (mode {image.mode}), whose range is not known{depth.range_remedy()}"
        raise depth.BandError(text, bands=1)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        depth.log_shallow(path, int(values.max()))
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    rgb = _to_rgb(path, image)  # Pillow keeps the upper 8 of 16 bits
    depth.log_shallow(path, 256 * int(np.asarray(rgb).max()) + 255)
    return rgb


@contextmanager
def as_data_error(path: str) -> Iterator[None]:
    """Convert any exception of a decoder to a DataError that names the file; a missing package stays a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # Pillow's plug-ins let OSError, SyntaxError, struct.error and others escape
        raise DataError(f"{CANNOT_READ}{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # Pillow's text names a memory address, not the file
        return "it is not an image of a known format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
