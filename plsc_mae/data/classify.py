"""Transforms of supervised training: fine-tuning, linear and attentive probing, and evaluation of all of them.

They give uint8 pixels, as all transforms do. What random erasing draws goes along, for `plsc_mae.data.erasing.erase`
to apply after normalizing; Mixup is drawn per batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from plsc_mae.data.decode import Interpolation, PilImage, Pixels, SourceImage
from plsc_mae.data.erasing import RandomErasing
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

TINY_SIDE = 32  # up to here images are not resized, as their data sets come in this size
_TINY_PADDING = 4


@dataclass(frozen=True)
class FinetuneAugment:
    """Crop, flip, RandAugment or color jitter, erasing: the augmentation of fine-tuning (timm 0.3.2).

    Gives {"image": uint8 [h, w, 3]} and, with erasing, what `RandomErasing` gives. Images for inputs of up to 32 pixels
    are padded by 4 black ones and cropped, not resized (BUPT-PRIV/MAE-priv).

    Attributes:
        size: of the output, (h, w).
        scale: range of the crop's share of the image area.
        hflip: probability of a horizontal flip.
        interpolation: of the crop; random chooses bilinear or bicubic for each image.
        rand_augment: None for none.
        color_jitter: strength of the jitter of brightness, contrast and saturation; only where there is no RandAugment.
        erasing: None for none.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    interpolation: InterpolationChoice = "bicubic"
    rand_augment: RandAugment | None = None
    color_jitter: float = 0.0
    erasing: RandomErasing | None = None

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Draw from `rng` and apply what was drawn, in the order above."""
        pixels = self._crop(image, rng)
        if rng.random() < self.hflip:
            pixels = flip_horizontal(pixels)
        if self.rand_augment is not None:
            pixels = np.array(self.rand_augment(Image.fromarray(pixels), rng))
        elif self.color_jitter > 0:
            crop = PilImage(image.path, Image.fromarray(pixels))
            pixels = color_jitter(crop, self.color_jitter, rng).resize(self.size)
        erased = self.erasing(self.size, rng) if self.erasing is not None else {}
        return {"image": pixels, **erased}

    def _crop(self, image: SourceImage, rng: np.random.Generator) -> Pixels:
        if max(self.size) <= TINY_SIDE:
            return padded_crop(image, self.size, rng)
        box = random_resized_crop_box(rng.random, image.height, image.width, self.scale)
        return image.crop_resize(box, self.size, draw_interpolation(self.interpolation, rng))


def linear_probe_augment(
    size: tuple[int, int], scale: tuple[float, float] = (0.08, 1.0), draw_box: DrawBox = clamped_crop_box
) -> RandomCropFlip:
    """Return the augmentation of linear probing: a crop, then a flip.

    The crop is drawn once and clamped, as in facebookresearch/mae util/crop.py, unless `draw_box` draws it otherwise.
    """
    return RandomCropFlip(size, scale, draw_box=draw_box)


def evaluation_transform(
    size: tuple[int, int], crop_pct: float | None = None, interpolation: Interpolation = "bicubic"
) -> ResizeCenterCrop:
    """Return the transform of validation images (facebookresearch/mae util/datasets.py).

    Args:
        size: of the output, (h, w).
        crop_pct: longer side of the output over the resized image's shorter side; by default 224 / 256 up to 224
            pixels and 1 beyond. Inputs of up to 32 pixels default to 1 too, so images of that size stay as they are.
        interpolation: k-NN evaluation uses bilinear.
    """
    side = max(size)
    if crop_pct is None:
        crop_pct = 224 / 256 if TINY_SIDE < side <= 224 else 1.0
    return ResizeCenterCrop(size, int(side / crop_pct), interpolation)


def padded_crop(image: SourceImage, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Pad an image by 4 black pixels on all sides and crop `size` = (h, w) anywhere, as torchvision's RandomCrop.

    Raises:
        DataError: the padded image is smaller than the crop.
    """
    free = [side + 2 * _TINY_PADDING - crop for side, crop in zip((image.height, image.width), size, strict=True)]
    if min(free) < 0:
        raise DataError(
            f"image {image.path} of {image.height}x{image.width} pixels is too small for --input_size "
            f"{size[0]}x{size[1]}, which does not enlarge images; enlarge or remove it"
        )
    pixels = image.resize((image.height, image.width))
    padded = np.pad(pixels, ((_TINY_PADDING, _TINY_PADDING), (_TINY_PADDING, _TINY_PADDING), (0, 0)))
    top, left = (int(rng.random() * (room + 1)) for room in free)
    return np.ascontiguousarray(padded[top : top + size[0], left : left + size[1]])
