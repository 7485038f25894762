"""Transforms for supervised training (fine-tuning, linear and attentive probing) and for evaluation.

Like all transforms, they return pixels from 0 to 255. The boxes and noise of random erasing are returned with the
image; `plsc_mae.data.erasing.erase` applies them after normalization. Mixup is drawn per batch, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from plsc_mae.data.decode import Interpolation, PilImage, SourceImage
from plsc_mae.data.erasing import RandomErasing
from plsc_mae.data.pixels import Pixels
from plsc_mae.data.randaugment import RandAugment
from plsc_mae.data.transforms import (
    DrawBox,
    InterpolationChoice,
    RandomCropFlip,
    ResizeCenterCrop,
    Sample,
    clamped_crop_box,
    draw_interpolation,
    flip_horizontal,
    random_resized_crop_box,
)
from plsc_mae.data.views import color_jitter
from plsc_mae.errors import DataError

TINY_SIDE = 32  # for inputs of up to this size, training images are cropped without resizing, as for CIFAR
_TINY_PADDING = 4


@dataclass(frozen=True)
class FinetuneAugment:
    """Augmentation of fine-tuning (timm 0.3.2): crop, flip, RandAugment or color jitter, random erasing.

    A call returns {"image": pixels [h, w, C]} and, with erasing, the arrays of `RandomErasing`. For inputs of up to 32
    pixels, images are padded by 4 black pixels and cropped instead of resized (BUPT-PRIV/MAE-priv).
    """

    size: tuple[int, int]  # output size (h, w)
    scale: tuple[float, float] = (0.08, 1.0)  # range of the crop's area as a fraction of the image area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height
    hflip: float = 0.5  # probability of a horizontal flip
    # filter of the crop; "random" chooses bilinear or bicubic for each image
    interpolation: InterpolationChoice = "bicubic"
    rand_augment: RandAugment | None = None  # None disables RandAugment
    # strength of the brightness, contrast and saturation jitter; ignored if RandAugment is enabled
    color_jitter: float = 0.0
    erasing: RandomErasing | None = None  # None disables random erasing
    # whether the images are 8-bit RGB. For others RandAugment must be geometric; color jitter is left out.
    is_rgb: bool = True

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Augment an image; `rng` draws crop, flip, RandAugment or color jitter, and erasing, in this order.

        Raises:
            DataError: the image cannot be decoded; for inputs of up to 32 pixels, see `padded_crop`.
        """
        pixels = self._crop(image, rng)
        if rng.random() < self.hflip:
            pixels = flip_horizontal(pixels)
        if self.rand_augment is not None and not self.is_rgb:
            pixels = self.rand_augment.augment_channels(pixels, rng)
        elif self.rand_augment is not None:
            pixels = np.array(self.rand_augment(Image.fromarray(pixels), rng))
        elif self.color_jitter > 0 and self.is_rgb:
            crop = PilImage(image.path, Image.fromarray(pixels))
            pixels = color_jitter(crop, self.color_jitter, rng).resize(self.size)
        erased = self.erasing(self.size, rng) if self.erasing is not None else {}
        return {"image": pixels, **erased}

    def _crop(self, image: SourceImage, rng: np.random.Generator) -> Pixels:
        if max(self.size) <= TINY_SIDE:
            return padded_crop(image, self.size, rng)
        box = random_resized_crop_box(rng.random, image.height, image.width, self.scale, self.ratio)
        return image.crop_resize(box, self.size, draw_interpolation(self.interpolation, rng))


def linear_probe_augment(
    size: tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    draw_box: DrawBox = clamped_crop_box,
) -> RandomCropFlip:
    """Return the augmentation of linear probing: a random crop resized to `size` = (h, w), then a random flip.

    By default the crop is drawn once and clamped to the image, as in facebookresearch/mae util/crop.py; `draw_box`
    replaces that rule. `scale` is the range of the crop's area as a fraction of the image area, `ratio` that of its
    width / height before it is clamped.
    """
    return RandomCropFlip(size, scale, ratio, draw_box=draw_box)


def evaluation_transform(
    size: tuple[int, int], crop_pct: float | None = None, interpolation: Interpolation = "bicubic"
) -> ResizeCenterCrop:
    """Return the transform of validation images (facebookresearch/mae util/datasets.py).

    Args:
        size: output size (h, w).
        crop_pct: side of a square output / shorter side of the resized image; for other outputs see
            `ResizeCenterCrop`. Default: 224 / 256 if the longer side of the output has 33 to 224 pixels, else 1.
        interpolation: filter of the resize.
    """
    side = max(size)
    if crop_pct is None:
        crop_pct = 224 / 256 if TINY_SIDE < side <= 224 else 1.0
    return ResizeCenterCrop(size, int(side / crop_pct), interpolation)


def padded_crop(image: SourceImage, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Pad an image by 4 black pixels on each side and take a random crop of `size` = (h, w) (torchvision's RandomCrop).

    Raises:
        DataError: the image cannot be decoded, is smaller than the crop after padding, or is too large for
            `SourceImage.resize`.
    """
    free = [side + 2 * _TINY_PADDING - crop for side, crop in zip((image.height, image.width), size, strict=True)]
    if min(free) < 0:
        raise DataError(
            f"image {image.path} of {image.height}x{image.width} pixels is too small for --input_size "
            f"{size[0]}x{size[1]}: inputs of up to {TINY_SIDE} pixels are cropped without resizing; enlarge or remove "
            f"the image"
        )
    pixels = image.resize((image.height, image.width))
    padded = np.pad(pixels, ((_TINY_PADDING, _TINY_PADDING), (_TINY_PADDING, _TINY_PADDING), (0, 0)))
    top, left = (int(rng.random() * (margin + 1)) for margin in free)
    return np.ascontiguousarray(padded[top : top + size[0], left : left + size[1]])
