"""Shapes of a data set's images, and the input and crops that suit images far from square."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from plsc_mae.data.decode import any_number_of_pixels, open_regular
from plsc_mae.data.listing import ImageList
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import UserError

FAR_FROM_SQUARE = 2.0  # longer side divided by the shorter one
# Shorter side of images, divided by that of the input, from which small details are lost. The published recipes stay
# below 2 for photographs of 500 x 375 pixels.
LARGE = 3.0
_DETAIL = 32  # side in pixels, of an example
_SAMPLED_FILES = 32
_MARGIN = 1.25  # factor from the images' width / height to the ends of the range for crops


class Shape(NamedTuple):
    """Typical shape of images: the medians of width, height, and width / height."""

    width: float
    height: float
    ratio: float

    @property
    def is_far_from_square(self) -> bool:
        """True if one side is at least twice the other."""
        return max(self.ratio, 1 / self.ratio) >= FAR_FROM_SQUARE

    def __str__(self) -> str:
        return f"{self.width:.0f} x {self.height:.0f} (width x height)"


def typical_shape(sizes: Sequence[tuple[int, int]]) -> Shape:
    """Return the typical shape of images of one or more sizes (width, height) in pixels."""
    widths, heights = np.array(sizes).T
    return Shape(float(np.median(widths)), float(np.median(heights)), float(np.median(widths / heights)))


def sampled_sizes(images: ImageList, pixel_format: PixelFormat) -> list[tuple[int, int]]:
    """Return the sizes (width, height) of up to 32 files, evenly spaced in the list, without those that are unreadable.

    Only the header is read in formats that Pillow knows.
    """
    count, sizes = min(len(images), _SAMPLED_FILES), []
    for i in range(count):
        with contextlib.suppress(UserError):  # the check of the files reports it
            sizes.append(_size(images, i * len(images) // count, pixel_format))
    return sizes


def _size(images: ImageList, index: int, pixel_format: PixelFormat) -> tuple[int, int]:
    """Return (width, height) of an image; for the errors see `ImageList.open`."""
    try:
        with open_regular(images.path(index)) as (file, _), any_number_of_pixels(), Image.open(file) as header:
            return header.size
    except Exception:  # Pillow does not know the format; its plug-ins let exceptions of many types escape
        image = images.open(index, pixel_format=pixel_format)
        return image.width, image.height


def seen_shares(ratio: float, view: ResizeCenterCrop) -> tuple[float, float]:
    """Return the shares, up to 1, of the width and the height of images of this width / height that a crop shows."""
    height, width = view.size
    shown, relative = max(view.size) / view.shorter_side, ratio * height / width
    return shown * min(1, 1 / relative), shown * min(1, relative)


def describe_shrinking(shorter: float, side: int) -> str:
    """Return what an input of this side leaves of a detail of images with this shorter side, both in pixels."""
    factor = shorter / side
    return f"up to {round(factor, 1):g} times, so a detail of {_DETAIL} pixels has {_DETAIL / factor:.2g}"


def fitting_crop_ratio(ratio: float) -> tuple[float, float]:
    """Return a range of width / height, of two digits, for crops that can hold whole images of this width / height."""
    return float(f"{ratio / _MARGIN:.2g}"), float(f"{ratio * _MARGIN:.2g}")


def fitting_input_size(ratio: float, cells: int, side: int) -> tuple[int, int]:
    """Return (height, width) in pixels of an input of this width / height.

    Args:
        ratio: width / height of the images.
        cells: approximate number of square cells, such as patches, that the input has.
        side: side of a cell in pixels, of which height and width are multiples.
    """
    longer = max(ratio, 1 / ratio)
    rows = max(round(math.sqrt(cells / longer)), 1)
    columns = min(round(rows * longer), cells)
    height, width = (rows, columns) if ratio >= 1 else (columns, rows)
    return height * side, width * side
