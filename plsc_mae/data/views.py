"""Transforms that return two views of one crop: one for the network and one for the tokenizer, if there is one.

CAE pre-training predicts, for every masked patch of the first view, the token at the same position of the second view,
so both views are resized from the same box. Like all transforms, they return pixels from 0 to 255.
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
    """Jitter brightness, contrast and saturation in random order, as torchvision's ColorJitter does on PIL images.

    The whole image is decoded, because the contrast change is relative to its mean gray value. The returned image uses
    the pil backend.

    Args:
        image: source image; it is not modified.
        strength: v > 0; factors are uniform in [max(0, 1 - v), 1 + v], where 1 means no change.
        rng: generator of the sample; the order is drawn first, then one factor per change.

    Raises:
        DataError: the image cannot be decoded or is too large, see `SourceImage.resize`.
    """
    pixels = Image.fromarray(image.resize((image.height, image.width)))
    for choice in rng.permutation(len(_ENHANCERS)):
        pixels = _ENHANCERS[choice](pixels).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return PilImage(image.path, pixels)


@dataclass(frozen=True)
class TwoViewCropFlip:
    """Augmentation of CAE pre-training (Atten4Vis/CAE): color jitter, flip, then one random resized crop in two sizes.

    A call returns {"image": pixels [h, w, C], "tokenizer_image": pixels [h2, w2, 3]}, the second only if there is a
    tokenizer. The order of draws is: jitter (if enabled), flip, box, interpolation (if random).
    """

    size: tuple[int, int]  # size (h, w) of the network's view
    tokenizer_size: tuple[int, int] | None  # size (h2, w2) of the tokenizer's view; None without a tokenizer
    scale: tuple[float, float] = (0.08, 1.0)  # range of the crop's area as a fraction of the image area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height
    hflip: float = 0.5  # probability of a horizontal flip
    color_jitter: float = 0.0  # strength of the brightness, contrast and saturation jitter; 0 disables it
    # filter of the network's view; "random" chooses bilinear or bicubic for each image
    interpolation: InterpolationChoice = "bicubic"
    tokenizer_interpolation: Interpolation = "lanczos"  # filter of the tokenizer's view

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Augment an image; all draws come from `rng`."""
        if self.color_jitter > 0:
            image = color_jitter(image, self.color_jitter, rng)
        flip = rng.random() < self.hflip
        box = random_resized_crop_box(rng.random, image.height, image.width, self.scale, self.ratio)
        interpolation = draw_interpolation(self.interpolation, rng)
        if not flip:
            return self._views(image, box, interpolation)
        # The box refers to the flipped image. Resizing is symmetric, so cropping the mirrored box of the original image
        # and flipping the result gives the same pixels.
        mirrored = box._replace(left=image.width - box.left - box.width)
        views = self._views(image, mirrored, interpolation)
        return {name: flip_horizontal(pixels) for name, pixels in views.items()}

    def _views(self, image: SourceImage, box: Box, interpolation: Interpolation) -> Sample:
        views = {"image": image.crop_resize(box, self.size, interpolation)}
        if self.tokenizer_size is not None:
            views["tokenizer_image"] = image.crop_resize(box, self.tokenizer_size, self.tokenizer_interpolation)
        return views


@dataclass(frozen=True)
class TwoViewCenterCrop:
    """Deterministic transform: the largest centered crop in two sizes.

    A call returns the arrays of `TwoViewCropFlip`. The crop has the aspect ratio of `size`; a square one spans the
    shorter side of the image.
    """

    size: tuple[int, int]  # size (h, w) of the network's view
    # size (h2, w2) of the tokenizer's view, with the same aspect ratio; None without a tokenizer
    tokenizer_size: tuple[int, int] | None
    interpolation: Interpolation = "bicubic"  # filter of the network's view
    tokenizer_interpolation: Interpolation = "lanczos"  # filter of the tokenizer's view

    def __call__(self, image: SourceImage, _rng: np.random.Generator) -> Sample:
        """Crop and resize an image; the generator is unused."""
        factor = min(image.height / self.size[0], image.width / self.size[1])
        height, width = (max(1, round(side * factor)) for side in self.size)
        box = center_crop_box(image.height, image.width, (height, width))
        views = {"image": image.crop_resize(box, self.size, self.interpolation)}
        if self.tokenizer_size is not None:
            views["tokenizer_image"] = image.crop_resize(box, self.tokenizer_size, self.tokenizer_interpolation)
        return views
