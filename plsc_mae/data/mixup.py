"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a normalized batch on the device, as in timm 0.3.2.

Image i of a batch of B is mixed with its partner, image B - 1 - i. The middle image of an odd batch is its own partner.
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
from plsc_mae.data.transfer import to_device

_EMPTY_BOX = Box(0, 0, 0, 0)


class Mixing(NamedTuple):
    """Mixing parameters of a batch: one entry for the whole batch (n = 1) or one per image."""

    # weights [n] of the image's own pixels outside its box (1 for CutMix); the
    # partner's pixels there have weight 1 - keep
    keep: npt.NDArray[np.float64]
    # [n, 4] of (top, left, height, width); CutMix fills them with the partner's pixels. Empty for mixup.
    boxes: npt.NDArray[np.int64]
    lam: npt.NDArray[np.float64]  # weights [n] of the image's own label; the partner's has 1 - lam


def cutmix_box(lam: float, center: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the box around `center` = (y, x) that covers the fraction 1 - `lam` of an image of `size` = (h, w).

    The box is clipped at the borders. Its sides are rounded down to even numbers of pixels, as in timm 0.3.2.
    """
    half_sides = [int(side * np.sqrt(1 - lam)) // 2 for side in size]
    low = [max(0, middle - half) for middle, half in zip(center, half_sides, strict=True)]
    high = [min(side, middle + half) for side, middle, half in zip(size, center, half_sides, strict=True)]
    return Box(low[0], low[1], high[0] - low[0], high[1] - low[1])


def make_mixing(
    lam: npt.NDArray[np.float64], cutmix: npt.NDArray[np.bool_], boxes: list[Box], size: tuple[int, int]
) -> Mixing:
    """Combine drawn values into mixing parameters; CutMix's lam becomes the exact area fraction outside the box.

    Args:
        lam: drawn weights [n].
        cutmix: bool [n]; True selects CutMix, False mixup.
        boxes: n boxes; ignored for mixup.
        size: image size (h, w).
    """
    drawn = np.where(cutmix[:, None], np.array(boxes, np.int64).reshape(-1, 4), 0)
    outside = 1 - drawn[:, 2] * drawn[:, 3] / (size[0] * size[1])
    return Mixing(np.where(cutmix, 1.0, lam), drawn, np.where(cutmix, outside, lam))


def mix_images(images: Tensor, mixing: Mixing) -> Tensor:
    """Return float images [B, C, H, W] mixed with their partners; `mixing` has one entry for the batch or per image."""
    if (mixing.lam == 1).all():
        return images
    with paddle.amp.auto_cast(enable=False):
        keep = to_device(mixing.keep.astype(np.float32)).reshape([-1, 1, 1, 1])
        if mixing.boxes.any():
            inside = inside_boxes(to_device(mixing.boxes), *images.shape[2:])
            keep = keep * (1 - inside.astype("float32"))  # [n, 1, H, W]
        return images * keep + images.flip(0) * (1 - keep)


def mix_labels(labels: Tensor, mixing: Mixing, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return the soft targets float32 [B, K] of a mixed batch; for class numbers, each row sums to 1.

    Args:
        labels: class numbers [B], or float [B, K]; a NaN makes the target of the image and of its partner NaN.
        mixing: mixing parameters with one entry for the batch or one per image.
        num_classes: number of classes K.
        label_smoothing: fraction of a label that is spread evenly over all classes; not applied to labels [B, K].
    """
    with paddle.amp.auto_cast(enable=False):
        if labels.ndim == 2:
            own = labels
        else:
            own = F.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
        lam = to_device(mixing.lam.astype(np.float32)).reshape([-1, 1])
        return own * lam + own.flip(0) * (1 - lam)


@dataclass(frozen=True)
class Mixup:
    """Random mixup and CutMix of a batch, with label smoothing."""

    num_classes: int  # number of classes K
    mixup_alpha: float = 0.8  # mixup draws lam from Beta(alpha, alpha); 0 disables mixup
    # the same for CutMix. If neither is enabled, labels are smoothed and images stay unchanged.
    cutmix_alpha: float = 1.0
    # range of the sides of CutMix's boxes, as fractions of the image's sides. It
    # enables CutMix even if cutmix_alpha is 0.
    cutmix_minmax: tuple[float, float] | None = None
    prob: float = 1.0  # probability that mixing is applied
    switch_prob: float = 0.5  # probability of CutMix instead of mixup if both are enabled
    mode: Literal["batch", "pair", "elem"] = "batch"  # draw once per batch, per pair of partners, or per image ("elem")
    label_smoothing: float = 0.1  # fraction of a label that is spread evenly over all classes

    def __call__(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mix images float [B, C, H, W] and labels, [B] or float [B, K], with parameters drawn from `rng`.

        Returns:
            Mixed images of the same shape, and soft targets float32 [B, K].
        """
        batch, _, height, width = images.shape
        mixing = self.draw(batch, (height, width), rng)
        return mix_images(images, mixing), mix_labels(labels, mixing, self.num_classes, self.label_smoothing)

    def draw(self, batch_size: int, size: tuple[int, int], rng: np.random.Generator) -> Mixing:
        """Draw the mixing parameters of `batch_size` images of `size` = (h, w)."""
        pairs = (batch_size + 1) // 2
        count = {"batch": 1, "pair": pairs, "elem": batch_size}[self.mode]
        cutmix = rng.random(count) < self._cutmix_probability
        lam = np.ones(count)
        for alpha, chosen in ((self.mixup_alpha, ~cutmix), (self._cutmix_alpha, cutmix)):
            if alpha > 0:
                lam = np.where(chosen, rng.beta(alpha, alpha, count), lam)
        lam = np.where(rng.random(count) < self.prob, lam, 1.0)
        boxes = [self._draw_box(lam[i], size, rng) if cutmix[i] and lam[i] < 1 else _EMPTY_BOX for i in range(count)]
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
