"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a normalized batch on the device, as in timm 0.3.2.

The partner of an image is its mirror in the batch: the first is mixed with the last. The one in the middle of an odd
batch is its own partner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from plsc_mae.data.decode import Box
from plsc_mae.data.erasing import inside_boxes

_NOWHERE = Box(0, 0, 0, 0)


class Mixing(NamedTuple):
    """How a batch is mixed: one entry for all its images, or one for each.

    Attributes:
        keep: weight [n] of an image outside its box, 1 for CutMix; its partner has the rest.
        boxes: [n, 4] of (top, left, height, width), where CutMix takes the partner's pixels.
        lam: weight [n] of an image's label.
    """

    keep: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.int64]
    lam: npt.NDArray[np.float64]


def cutmix_box(lam: float, center: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return a box of the share 1 - lam of an image of `size` = (h, w) around `center`, clipped at the borders.

    Sides are cut to even numbers of pixels, as in timm 0.3.2.
    """
    half = [int(side * np.sqrt(1 - lam)) // 2 for side in size]
    low = [max(0, middle - reach) for middle, reach in zip(center, half, strict=True)]
    high = [min(side, middle + reach) for side, middle, reach in zip(size, center, half, strict=True)]
    return Box(low[0], low[1], high[0] - low[0], high[1] - low[1])


def make_mixing(
    lam: npt.NDArray[np.float64], cutmix: npt.NDArray[np.bool_], boxes: list[Box], size: tuple[int, int]
) -> Mixing:
    """Combine what was drawn; CutMix's lam is corrected to the share of the image outside its box.

    Args:
        lam: weights [n].
        cutmix: bool [n], else mixup.
        boxes: n of them, of which mixup has no use.
        size: of the images, (h, w).
    """
    drawn = np.where(cutmix[:, None], np.array(boxes, np.int64).reshape(-1, 4), 0)
    outside = 1 - drawn[:, 2] * drawn[:, 3] / (size[0] * size[1])
    return Mixing(np.where(cutmix, 1.0, lam), drawn, np.where(cutmix, outside, lam))


def mix_images(images: Tensor, mixing: Mixing) -> Tensor:
    """Mix float images [B, 3, H, W], one entry of `mixing` for all or one for each."""
    if (mixing.lam == 1).all():
        return images
    with paddle.amp.auto_cast(enable=False):
        keep = paddle.to_tensor(mixing.keep.astype(np.float32)).reshape([-1, 1, 1, 1])
        if mixing.boxes.any():
            inside = inside_boxes(paddle.to_tensor(mixing.boxes), *images.shape[2:])
            keep = keep * (1 - inside.astype("float32"))  # [n, 1, H, W]
        return images * keep + images.flip(0) * (1 - keep)


def mix_labels(labels: Tensor, mixing: Mixing, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Turn class numbers [B] into soft targets float32 [B, K], rows of which sum to 1.

    Args:
        labels: class numbers.
        mixing: one entry for all or one for each.
        num_classes: K.
        label_smoothing: share of a label that is spread evenly over all classes.
    """
    with paddle.amp.auto_cast(enable=False):
        own = F.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
        lam = paddle.to_tensor(mixing.lam.astype(np.float32)).reshape([-1, 1])
        return own * lam + own.flip(0) * (1 - lam)


@dataclass(frozen=True)
class Mixup:
    """Draws how to mix a batch, and mixes it.

    Attributes:
        num_classes: K.
        mixup_alpha: of Beta(alpha, alpha), from which mixup's lam is drawn; 0 for no mixup.
        cutmix_alpha: the same for CutMix; with both 0, labels are smoothed and images left alone.
        cutmix_minmax: smallest and largest side of CutMix's boxes, as a share of the image's; then there is CutMix
            whatever its alpha is.
        prob: probability of mixing at all.
        switch_prob: probability of CutMix where there is mixup too.
        mode: draw once per batch, per pair of partners, or per image.
        label_smoothing: share of a label that is spread evenly over all classes.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    cutmix_minmax: tuple[float, float] | None = None
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    label_smoothing: float = 0.1

    def __call__(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mix images float [B, 3, H, W] and labels [B] by what is drawn from `rng`.

        Returns:
            Images like those given, and soft targets float32 [B, K].
        """
        batch, _, height, width = images.shape
        mixing = self.draw(batch, (height, width), rng)
        return mix_images(images, mixing), mix_labels(labels, mixing, self.num_classes, self.label_smoothing)

    def draw(self, batch_size: int, size: tuple[int, int], rng: np.random.Generator) -> Mixing:
        """Draw how to mix a batch of images of `size` = (h, w); the labels play no part."""
        pairs = (batch_size + 1) // 2
        count = {"batch": 1, "pair": pairs, "elem": batch_size}[self.mode]
        cutmix = rng.random(count) < self._cutmix_probability
        lam = np.ones(count)
        for alpha, chosen in ((self.mixup_alpha, ~cutmix), (self._cutmix_alpha, cutmix)):
            if alpha > 0:
                lam = np.where(chosen, rng.beta(alpha, alpha, count), lam)
        lam = np.where(rng.random(count) < self.prob, lam, 1.0)
        boxes = [self._draw_box(lam[i], size, rng) if cutmix[i] and lam[i] < 1 else _NOWHERE for i in range(count)]
        mixing = make_mixing(lam, cutmix, boxes, size)
        if self.mode != "pair":
            return mixing
        mirror = np.minimum(np.arange(batch_size), np.arange(batch_size)[::-1])  # 0 1 2 1 0
        return Mixing(mixing.keep[mirror], mixing.boxes[mirror], mixing.lam[mirror])

    @property
    def _cutmix_alpha(self) -> float:
        return self.cutmix_alpha if self.cutmix_minmax is None else 1.0

    @property
    def _cutmix_probability(self) -> float:
        if self.mixup_alpha > 0 and self._cutmix_alpha > 0:
            return self.switch_prob
        return 1.0 if self._cutmix_alpha > 0 else 0.0

    def _draw_box(self, lam: float, size: tuple[int, int], rng: np.random.Generator) -> Box:
        height, width = size
        if self.cutmix_minmax is None:
            return cutmix_box(lam, (int(rng.integers(height)), int(rng.integers(width))), size)
        low, high = self.cutmix_minmax
        sides = [int(rng.integers(int(low * side), int(high * side), endpoint=True)) for side in size]
        corner = [int(rng.integers(whole - side, endpoint=True)) for whole, side in zip(size, sides, strict=True)]
        return Box(*corner, *sides)
