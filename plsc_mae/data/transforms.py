"""Crops, flips and the basic transforms; a transform maps (image, generator) to named arrays.

Pixels stay arrays [H, W, C] from 0 to 255, see `plsc_mae.data.pixels`; `plsc_mae.data.normalize.Normalize` normalizes
them on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from plsc_mae.data.decode import Box, Interpolation, SourceImage
from plsc_mae.data.pixels import Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = (0.5, 0.5, 0.5)
INCEPTION_STD = (0.5, 0.5, 0.5)

Sample = dict[str, npt.NDArray[Any]]
Transform = Callable[[SourceImage, np.random.Generator], Sample]
InterpolationChoice: TypeAlias = Interpolation | Literal["random"]
# (uniform, height, width, scale, ratio) -> box
DrawBox = Callable[[Callable[[], float], int, int, tuple[float, float], tuple[float, float]], Box]


def random_resized_crop_box(
    uniform: Callable[[], float],
    height: int,
    width: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    below: Callable[[int], int] | None = None,
) -> Box:
    """Draw a crop of random area and aspect ratio, as torchvision's RandomResizedCrop does.

    After ten failed attempts, the crop is the largest centered one with an aspect ratio within `ratio`.

    Args:
        uniform: function that draws a number from [0, 1). Each attempt takes two draws, for area and log aspect ratio;
            an accepted crop takes two more, for top and left, unless `below` is given.
        height: image height in pixels.
        width: image width in pixels.
        scale: range of the crop's area as a fraction of the image area.
        ratio: range of the crop's width / height.
        below: function that draws an integer from [0, n), for top and left; by default `int(uniform() * n)`.
    """
    below = below or (lambda n: int(uniform() * n))
    for _ in range(10):
        crop_height, crop_width = _draw_sides(uniform, height, width, scale, ratio)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = below(height - crop_height + 1)
            left = below(width - crop_width + 1)
            return Box(top, left, crop_height, crop_width)
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        crop_width = max(round(height * ratio[1]), 1)
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def clamped_crop_box(
    uniform: Callable[[], float],
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a crop as `random_resized_crop_box` does, but with one attempt, clamped to the image size.

    This is the crop of linear probing (facebookresearch/mae util/crop.py, after BYOL). It draws four numbers from
    `uniform`: area, log aspect ratio, top and left.
    """
    crop_height, crop_width = _draw_sides(uniform, height, width, scale, ratio)
    crop_height = min(max(crop_height, 1), height)
    crop_width = min(max(crop_width, 1), width)
    top = int(uniform() * (height - crop_height + 1))
    left = int(uniform() * (width - crop_width + 1))
    return Box(top, left, crop_height, crop_width)


def draw_interpolation(choice: InterpolationChoice, rng: np.random.Generator) -> Interpolation:
    """Return `choice`, or for "random" draw bilinear or bicubic from `rng`."""
    if choice == "random":
        return "bilinear" if rng.random() < 0.5 else "bicubic"
    return choice


def resize_shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the size (h, w) with shorter side `size` and the same aspect ratio; the longer one is rounded down."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def resize_to_cover(height: int, width: int, size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the rounded size (h, w) to which an image of `height` x `width` is resized to just cover `scale` * `size`.

    The aspect ratio of the image is kept. The result is never smaller than `size` = (h, w).
    """
    factor = max(size[0] * scale / height, size[1] * scale / width)
    return max(round(height * factor), size[0]), max(round(width * factor), size[1])


def center_crop_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """Return the box of the centered crop of `size` = (h, w); offsets are rounded half to even as in torchvision.

    Raises:
        ValueError: the crop is larger than the image.
    """
    if height < size[0] or width < size[1]:
        raise ValueError(f"a center crop of {size[0]}x{size[1]} does not fit into {height}x{width} pixels")
    return Box(round((height - size[0]) / 2), round((width - size[1]) / 2), *size)


def flip_horizontal(pixels: Pixels) -> Pixels:
    """Mirror an image [H, W, C] horizontally."""
    return np.ascontiguousarray(pixels[:, ::-1])


@dataclass(frozen=True)
class RandomCropFlip:
    """Augmentation by a random crop, then a flip, as in MAE's pre-training (He et al. 2022, appendix A.1).

    A call returns {"image": pixels [h, w, C]}.
    """

    size: tuple[int, int]  # output size (h, w)
    scale: tuple[float, float] = (0.2, 1.0)  # range of the crop's area as a fraction of the image area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height
    hflip: float = 0.5  # probability of a horizontal flip
    interpolation: Interpolation = "bicubic"  # filter of the crop
    draw_box: DrawBox = random_resized_crop_box  # `random_resized_crop_box` or `clamped_crop_box`

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Crop and flip an image; `rng` draws first the box, then the flip."""
        box = self.draw_box(rng.random, image.height, image.width, self.scale, self.ratio)
        flip = rng.random() < self.hflip
        pixels = image.crop_resize(box, self.size, self.interpolation)
        return {"image": flip_horizontal(pixels) if flip else pixels}


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Deterministic transform: resize the shorter side, then crop the center.

    For a rectangular output, the image is resized to just cover f * (h, w), with f = shorter_side / max(h, w) as for a
    square output.

    A call returns {"image": pixels [h, w, C]}.
    """

    size: tuple[int, int]  # output size (h, w)
    # length in pixels of the image's shorter side after the resize; usually 256 for an
    # output of 224. For a rectangular output, the longer side of f * (h, w).
    shorter_side: int
    interpolation: Interpolation = "bicubic"  # filter of the resize

    def __call__(self, image: SourceImage, _rng: np.random.Generator) -> Sample:
        """Resize and crop an image; the generator is unused."""
        if self.size[0] == self.size[1]:
            height, width = resize_shorter_side(image.height, image.width, self.shorter_side)
        else:
            scale = self.shorter_side / max(self.size)
            height, width = resize_to_cover(image.height, image.width, self.size, scale)
        pixels = image.resize((height, width), self.interpolation)
        box = center_crop_box(height, width, self.size)
        crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        return {"image": np.ascontiguousarray(crop)}


def _draw_sides(
    uniform: Callable[[], float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int]:
    area = height * width * _between(scale, uniform())
    aspect = math.exp(_between((math.log(ratio[0]), math.log(ratio[1])), uniform()))
    return round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def _between(bounds: tuple[float, float], fraction: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * fraction
