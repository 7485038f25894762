"""Pixel format of a run: channels, type, and resizing of any number of channels.

Pixels are arrays [h, w, C] on a scale from 0 to 255: uint8, or float32 at the full depth of the files. RGB is always
uint8. Other images are float32 if the run has a `PixelRange`, because 256 levels would lose their depth.

The bands of a file that `plsc_mae.data.raster` reads become the channels by this rule:
    bands are given               these bands, in their order
    one band per channel          all bands
    one channel, color of 8 bits  its luminance, as Pillow's convert("L"); only in PNG, JPEG and similar files
    RGB, one band                 the band three times
    RGB, four bands               the first three
    any other combination         an error that names both numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from plsc_mae.data import depth
from plsc_mae.data.depth import PixelRange
from plsc_mae.errors import flag, remedies
from plsc_mae.wording import counted

Pixels = npt.NDArray[Any]  # [h, w, C], uint8 or float32, from 0 to 255
RGB_CHANNELS = 3


class PixelFormat(NamedTuple):
    """Format in which a run reads its images."""

    channels: int = RGB_CHANNELS  # number C of channels
    # numbers, from 1, of the file's bands that become the channels, in this order; ()
    # applies the rule in the module's docstring
    bands: tuple[int, ...] = ()
    # values that become 0 and 255 in files of more than 8 bits per band; None divides
    # 16 bits by 256 and refuses 32-bit values
    range: PixelRange | None = None
    # side in pixels of the square tile that a sample is taken from; 0 uses the whole
    # image. With a tile, files of any size are read.
    tile: int = 0

    @property
    def is_rgb(self) -> bool:
        """True for images that are converted to 8-bit RGB."""
        return self.channels == RGB_CHANNELS and not self.bands

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """Type of the pixels."""
        return np.uint8 if self.is_rgb or self.range is None else np.float32


RGB = PixelFormat()


def choose_bands(count: int, pixel_format: PixelFormat) -> list[int]:
    """Return the zero-based indices of the bands that become the channels.

    Raises:
        ValueError: the file lacks one of `pixel_format.bands`, or its number of bands does not fit the channels.
    """
    if pixel_format.bands:
        if max(pixel_format.bands) > count:
            raise ValueError(
                f"it has {counted(count, 'band')}; expected band {max(pixel_format.bands)} of {flag('bands')} too"
            )
        return [band - 1 for band in pixel_format.bands]
    if pixel_format.is_rgb and count in (1, RGB_CHANNELS + 1):
        return [0] * RGB_CHANNELS if count == 1 else list(range(RGB_CHANNELS))
    if count != pixel_format.channels:
        remedy = remedies("choose bands with --bands", f"give --in_chans {count}") or "convert it"
        raise depth.BandError(
            f"it has {counted(count, 'band')}; expected {pixel_format.channels}, the channels of the network: {remedy}",
            count,
        )
    return list(range(count))


def take_bands(values: depth.Values, bands: Sequence[int]) -> depth.Values:
    """Return the zero-based `bands` of values [h, w, F]; all bands in their order are returned without a copy."""
    return values if list(bands) == list(range(values.shape[2])) else values[..., list(bands)]


def to_pixels(values: depth.Values, pixel_format: PixelFormat, path: str) -> Pixels:
    """Convert values [h, w, C] of a file to pixels of type `pixel_format.dtype`.

    The pixel range does not apply to uint8 and boolean values.

    Args:
        values: values of any real type.
        pixel_format: format of the pixels.
        path: the file, for the log line about 16-bit values that fill at most half of the 256 levels.

    Raises:
        ValueError: the values are not real numbers, or have no known range and `pixel_format` has none.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return values.astype(pixel_format.dtype, copy=False)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its values are of type {values.dtype}; expected integers or floating-point numbers")
    if pixel_format.range is not None:
        scaled = depth.scale(values, pixel_format.range)
        return (
            np.rint(scaled).astype(np.uint8)
            if pixel_format.dtype is np.uint8
            else scaled.astype(np.float32, copy=False)
        )
    if values.dtype != np.uint16:
        raise ValueError(f"its values are of type {values.dtype}, whose range is not known{depth.range_remedy()}")
    depth.log_shallow(path, int(values.max(initial=0)))
    return (values >> 8).astype(np.uint8)


def resize_pixels(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Resize pixels [H, W, C] to `size` = (h, w) with antialiasing, channel by channel, with Pillow's filters.

    Floats are clipped to 0..255, as Pillow clips uint8.
    """
    if pixels.shape[:2] == tuple(size):
        return np.ascontiguousarray(pixels)
    shape = (size[1], size[0])
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[2])]
    resized = np.stack([np.asarray(plane.resize(shape, resample)) for plane in planes], axis=-1)
    return np.clip(resized, 0, 255, out=resized) if resized.dtype == np.float32 else resized


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel: `values` if there are `channels` of them, else their mean for every channel."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
