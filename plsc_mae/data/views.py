"""Transforms that show one crop twice: large for the network, small for the tokenizer that names its patches.

CAE pre-training predicts, for every hidden patch of the first view, the token of the same place in the second, so
both are resized from one box. They give uint8 pixels, as all transforms do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from plsc_mae.data.decode import Box, Interpolation, PilImage, SourceImage
from plsc_mae.data.transforms import (
    InterpolationChoice,
    Sample,
    center_crop_box,
    draw_interpolation,
    flip_horizontal,
    random_resized_crop_box,
)

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def color_jitter(image: SourceImage, strength: float, rng: np.random.Generator) -> SourceImage:
    """Change brightness, contrast and saturation, in random order, as torchvision's ColorJitter does to PIL images.

    Decodes the whole image, since contrast is measured against its mean; what is returned is cropped by the pil
    backend. Draws the order, then one factor per change as it is applied.

    Args:
        image: left unchanged.
        strength: v > 0; factors are uniform in [max(0, 1 - v), 1 + v], and a factor of 1 changes nothing.
        rng: the sample's generator.
    """
    pixels = Image.fromarray(image.resize((image.height, image.width)))
    for choice in rng.permutation(len(_ENHANCERS)):
        pixels = _ENHANCERS[choice](pixels).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return PilImage(image.path, pixels)


@dataclass(frozen=True)
class TwoViewCropFlip:
    """Jitter, flip, then one random resized crop in two sizes: the augmentation of CAE pre-training (Atten4Vis/CAE).

    Gives {"image": uint8 [h, w, 3], "tokenizer_image": uint8 [h2, w2, 3]}. Draws, in this order: the jitter, if there
    is any; the flip; the box; the interpolation, if it is random.

    Attributes:
        size: of the network's view, (h, w).
        tokenizer_size: of the tokenizer's view, (h2, w2).
        scale: range of the crop's share of the image area.
        hflip: probability of a horizontal flip.
        color_jitter: strength of the jitter of brightness, contrast and saturation; 0 for none.
        interpolation: of the network's view; random chooses bilinear or bicubic for each image.
        tokenizer_interpolation: of the tokenizer's view.
    """

    size: tuple[int, int]
    tokenizer_size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    color_jitter: float = 0.0
    interpolation: InterpolationChoice = "bicubic"
    tokenizer_interpolation: Interpolation = "lanczos"

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Draw from `rng` and apply what was drawn."""
        if self.color_jitter > 0:
            image = color_jitter(image, self.color_jitter, rng)
        flip = rng.random() < self.hflip
        box = random_resized_crop_box(rng.random, image.height, image.width, self.scale)
        interpolation = draw_interpolation(self.interpolation, rng)
        if not flip:
            return self._views(image, box, interpolation)
        # The box was drawn on the flipped image. Resizing is symmetric, so its mirror image, flipped, is that crop.
        mirrored = box._replace(left=image.width - box.left - box.width)
        views = self._views(image, mirrored, interpolation)
        return {name: flip_horizontal(pixels) for name, pixels in views.items()}

    def _views(self, image: SourceImage, box: Box, interpolation: Interpolation) -> Sample:
        return {
            "image": image.crop_resize(box, self.size, interpolation),
            "tokenizer_image": image.crop_resize(box, self.tokenizer_size, self.tokenizer_interpolation),
        }


@dataclass(frozen=True)
class TwoViewCenterCrop:
    """The largest centered crop in two sizes, to look at a model's work; draws nothing.

    Gives the arrays of `TwoViewCropFlip`. The crop has the shape of `size`: a square one spans the shorter side.

    Attributes:
        size: of the network's view, (h, w).
        tokenizer_size: of the tokenizer's view, (h2, w2), of the same shape.
        interpolation: of the network's view.
        tokenizer_interpolation: of the tokenizer's view.
    """

    size: tuple[int, int]
    tokenizer_size: tuple[int, int]
    interpolation: Interpolation = "bicubic"
    tokenizer_interpolation: Interpolation = "lanczos"

    def __call__(self, image: SourceImage, _rng: np.random.Generator) -> Sample:
        """Apply it; the generator is there because every transform takes one."""
        pixels_per_pixel = min(image.height / self.size[0], image.width / self.size[1])
        height, width = (max(1, round(side * pixels_per_pixel)) for side in self.size)
        box = center_crop_box(image.height, image.width, (height, width))
        return {
            "image": image.crop_resize(box, self.size, self.interpolation),
            "tokenizer_image": image.crop_resize(box, self.tokenizer_size, self.tokenizer_interpolation),
        }
