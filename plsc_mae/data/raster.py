"""Files with any number of bands and any type of values, read region by region if the format allows it.

A `Raster` gives the values of a file at their own depth. Formats and their bands:
    TIFF                     samples of a pixel, planes, or pages of one size: see `plsc_mae.data.tiff`
    .npy                     [H, W], or the smaller of the first and the last axis of [C, H, W] or [H, W, C]
    .npz                     its only array, or the array called "image"
    PNG, JPEG and others     gray or RGB, with alpha if it is a band; palettes, CMYK and YCbCr are converted to RGB
"""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from plsc_mae.data import depth
from plsc_mae.data.depth import Values
from plsc_mae.data.folder_walk import ARRAY_EXTENSIONS
from plsc_mae.data.tiff import open_tiff

TIFF_SUFFIXES = (".tif", ".tiff")
_NPZ_NAME = "image"
_PILLOW_BANDS = ("L", "LA", "RGB", "RGBA")  # modes whose bands are used as they are
_WITH_ALPHA = {"LA": "L", "RGBA": "RGB"}


class Raster(Protocol):
    """Values [H, W, F] of a file with F bands.

    Attributes:
        shape: (H, W, F).
        decodes_whole: whether reading a region takes the memory of all values.
        has_alpha: whether the file marks its last band as alpha.
    """

    decodes_whole: bool
    has_alpha: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and number of bands."""
        ...

    def read(self, rows: slice, columns: slice) -> Values:
        """Return the values [h, w, F] of a region inside the image."""
        ...


class ArrayRaster:
    """Values of an array in memory, or of a file that is mapped into memory.

    Args:
        values: [H, W] or [H, W, F].
    """

    decodes_whole = False  # the values are in memory already, or mapped
    has_alpha = False

    def __init__(self, values: Values) -> None:
        self.values = values if values.ndim == 3 else values[..., None]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and number of bands."""
        height, width, bands = self.values.shape
        return height, width, bands

    def read(self, rows: slice, columns: slice) -> Values:
        """See `Raster.read`."""
        return self.values[rows, columns]


class PillowRaster:
    """Values of a file that Pillow opens, at the depth of the file. All values are decoded at once, on first use.

    Args:
        path: the file, for messages.
        data: its content.
        gray: True to convert 8-bit color to luminance.
    """

    decodes_whole = True

    def __init__(self, path: str, data: bytes, *, gray: bool) -> None:
        self._path, self._data, self._gray = path, data, gray
        self._image: Image.Image = Image.open(io.BytesIO(data))
        if depth.has_pages(self._image):
            depth.log_loss("pages", path, "has several pages or frames; only the first one is used")
        self._is_deep = depth.is_deep(self._image)  # not known after decoding
        self.has_alpha = _mode_of_bands(self._image.mode) in _WITH_ALPHA

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and number of bands; to count several bands of more than 8 bits, the image is decoded."""
        mode = self._image.mode
        if mode in ("I", "F") or mode.startswith("I;16") or (self._gray and not self._is_deep):
            bands = 1
        elif self._is_deep:
            return self._decoded.shape
        else:
            bands = Image.getmodebands(_mode_of_bands(mode))
        return self._image.height, self._image.width, bands

    @cached_property
    def _decoded(self) -> ArrayRaster:
        image = self._image
        if self._is_deep:
            return ArrayRaster(depth.read_values(image, self._data, all_bands=True))
        image = image if image.mode in _PILLOW_BANDS else image.convert(_mode_of_bands(image.mode))
        if self._gray and image.mode != "L":
            depth.log_lost_alpha(self._path, image)
            image = image.convert(_WITH_ALPHA.get(image.mode, image.mode)).convert("L")
        return ArrayRaster(np.asarray(image))

    def read(self, rows: slice, columns: slice) -> Values:
        """See `Raster.read`."""
        return self._decoded.read(rows, columns)


def _mode_of_bands(mode: str) -> str:
    """Return the Pillow mode in which an image of 8 bits or less is read; the alpha of a palette is left out."""
    return mode if mode in _PILLOW_BANDS else "L" if mode == "1" else "RGB"


def reads_regions(path: str) -> bool:
    """Return whether a path has the suffix of a TIFF or .npy file; opening such a file checks its length."""
    return path.lower().endswith((*TIFF_SUFFIXES, ".npy"))


def open_raster(path: str, data: bytes | None = None, *, gray: bool = False) -> Raster:
    """Open a file; the values of most TIFF files and, without `data`, of .npy files are read later, region by region.

    Args:
        path: a regular file.
        data: its content, if it is in memory already.
        gray: True to convert 8-bit color of PNG, JPEG and similar files to luminance.

    Raises:
        ConfigError: a TIFF file needs the package tifffile, which is not installed.
        Exception: of many types: the file is damaged, or has a format or bands that are not supported.
    """
    suffix = Path(path).suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return open_tiff(path, data)
    if suffix in ARRAY_EXTENSIONS:
        return array_raster(_load_array(path, data))
    return PillowRaster(path, Path(path).read_bytes() if data is None else data, gray=gray)


def _load_array(path: str, data: bytes | None) -> Values:
    """Return the array of a .npz file, or of a .npy file, which is mapped into memory unless `data` is given."""
    source = path if data is None else io.BytesIO(data)
    if Path(path).suffix.lower() == ".npy":
        values: Values = np.load(source, mmap_mode="r" if data is None else None, allow_pickle=False)
        return values
    with np.load(source, allow_pickle=False) as archive:
        names = archive.files
        name = names[0] if len(names) == 1 else _NPZ_NAME
        if name not in names:
            raise ValueError(f"it has the arrays {', '.join(names)}; expected one array, or one called '{_NPZ_NAME}'")
        return np.asarray(archive[name])


def _bands_last(values: Values) -> Values:
    """Return [H, W] or [H, W, F]: of three axes, the first one is moved to the end if it is shorter than the last."""
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"it has an array of shape {list(values.shape)}; expected [H, W], [H, W, C] or [C, H, W]")
    if values.ndim == 3 and values.shape[0] < values.shape[2]:
        return np.moveaxis(values, 0, -1)
    return values


def array_raster(values: npt.ArrayLike) -> ArrayRaster:
    """Return the raster of an array [H, W], [H, W, F] or [F, H, W]; raise ValueError for other or empty shapes."""
    return ArrayRaster(_bands_last(np.asarray(values)))
