"""Options of reading pixels in commands that do not train. Training has options of its own with the same help texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import Checked, in_group

IN_CHANS = "channels of the images; weights for another number are converted [those of --bands or the weights, else 3]"
BANDS = "bands of a file, numbered from 1, that become the channels, in this order [the checkpoint's, else all]"
PIXEL_RANGE = (
    "LO HI: values that become 0 and 255 in images of more than 8 bits per band; auto: 0 to the next 2^k - 1 above "
    "the largest value of sampled images [the checkpoint's; else for RGB 16 bits are divided by 256, otherwise auto]"
)
MEAN = "mean of each channel, or one for all, of pixels scaled to 0..1 [the checkpoint's, else ImageNet's or 0.5]"
STD = "standard deviation, on the same scale as --mean [the checkpoint's, else ImageNet's or 0.5]"
STATS = "file of `plsc-mae stats`: mean, std and, where they are not given, pixel range, channels and bands"
TILE = (
    "side in pixels of the square tile that a sample is cropped from: a random one in training, else the central one; "
    "files of any size are read; 0: the whole image"
)
PICTURE_BANDS = "channels to show in pictures, numbered from 1: three as red, green, blue, or one as gray [the first]"
BAD_IMAGE = (
    "response to an image that cannot be decoded: skip leaves it out and ends with exit code 1; error ends the command"
)
MAX_CHANNELS = 1024

_images = in_group("Images")


@dataclass(kw_only=True, frozen=True)
class FormatOptions(Checked):
    """Options of channels and pixel range."""

    in_chans: int | None = _images(None, IN_CHANS, within=f"[1, {MAX_CHANNELS}]")
    bands: tuple[int, ...] | None = _images(None, BANDS, within="[1, inf)", metavar="BAND")
    pixel_range: tuple[str, ...] | None = _images(None, PIXEL_RANGE, metavar="VALUE")

    @property
    def wanted_channels(self) -> int | None:
        """Number of channels that --in_chans or --bands ask for; None if neither is given."""
        return self.in_chans or len(self.bands or ()) or None


@dataclass(kw_only=True, frozen=True)
class PixelOptions(FormatOptions):
    """Options of reading pixels in commands that do not train."""

    mean: tuple[float, ...] | None = _images(None, MEAN, metavar="VALUE")
    std: tuple[float, ...] | None = _images(None, STD, within="(0, inf)", metavar="VALUE")
    stats: str = _images("", STATS, metavar="FILE")
    tile: int = _images(0, TILE, within="[0, inf)", metavar="SIDE")
    bad_image: Literal["skip", "error"] = _images("skip", BAD_IMAGE)


def input_size_contradictions(input_size: Sequence[int]) -> Iterator[str]:
    """Yield a sentence unless --input_size is one side, or height and width."""
    if len(input_size) > 2:
        yield f"input_size: expected one side or height and width, got {input_size}"


def channel_contradictions(
    in_chans: int | None, bands: Sequence[int] | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Iterator[str]:
    """Yield a sentence for each contradiction between the options of channels, mean and standard deviation.

    These are another number of --bands than --in_chans, only one of --mean and --std, and a mean outside the scale of
    pixels.
    """
    if in_chans and bands and in_chans != len(bands):
        yield f"--in_chans {in_chans} contradicts the {len(bands)} --bands; leave --in_chans out"
    if (mean is None) != (std is None):
        yield "--mean and --std belong together; give both or neither"
    outside = [value for value in mean or () if not 0 <= value <= 1]
    if outside:
        yield (
            f"--mean has {outside[0]:g}, but pixels are from 0 to 1: subtract the smallest value of --pixel_range from "
            "the mean of your values, and divide it and --std by the width of the range, or let `plsc-mae stats` "
            "measure both"
        )
