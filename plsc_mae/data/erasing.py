"""Random erasing (Zhong et al. 2020) as in timm 0.3.2: fills boxes of a normalized image with noise.

The worker draws boxes and noise from the sample's generator. The device applies them after normalization, because
N(0, 1) noise does not fit into uint8 pixels. The worker sends noise for the boxes only, as float16, whose 11
significant bits are finer than the image's 8. Sending a seed instead would need less memory, but the training process
would have to draw the noise and wait for the device at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.data.decode import Box
from plsc_mae.data.transforms import Sample

_AREA = (0.02, 1 / 3)  # total area of the boxes, as a fraction of the image area
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10


def random_erasing_box(
    uniform: Callable[[], float],
    height: int,
    width: int,
    count: int = 1,
    below: Callable[[int], int] | None = None,
) -> Box | None:
    """Draw a box of random area and aspect ratio, lower and narrower than the image.

    Args:
        uniform: function that draws a number from [0, 1). Each attempt takes two draws, for area and log aspect ratio;
            an accepted box takes two more, for top and left, unless `below` is given.
        height: image height in pixels.
        width: image width in pixels.
        count: number of boxes in the image; the drawn area is divided by it.
        below: function that draws an integer from [0, n), for top and left; by default `int(uniform() * n)`.

    Returns:
        The box, or None if ten attempts failed.
    """
    below = below or (lambda n: int(uniform() * n))
    for _ in range(_ATTEMPTS):
        area = (_AREA[0] + (_AREA[1] - _AREA[0]) * uniform()) * height * width / count
        aspect = math.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * uniform())
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            return Box(below(height - box_height + 1), below(width - box_width + 1), box_height, box_width)
    return None


@dataclass(frozen=True)
class RandomErasing:
    """Generator of boxes and their noise for random erasing; the worker calls it once per sample."""

    prob: float = 0.25  # probability that boxes are drawn for a sample
    # "pixel" fills with noise per pixel, "rand" with one random color per box, "const"
    # with zeros, which is the mean color
    mode: Literal["pixel", "rand", "const"] = "pixel"
    max_count: int = 1  # largest number of boxes per image; the number is drawn uniformly from 1 to `max_count`
    channels: int = 3  # channels C of the images

    def __call__(self, size: tuple[int, int], rng: np.random.Generator) -> Sample:
        """Draw boxes and their noise for an image of `size` = (h, w).

        Returns:
            Arrays of fixed shape. "erase_boxes" is int32 [max_count, 4] of (top, left, height, width); unused boxes
            have height 0. "erase_noise" is float16 [max_count, C, N], each box's pixels row by row, then zeros; N is 1
            unless `mode` is "pixel".
        """
        boxes = np.zeros((self.max_count, 4), np.int32)
        noise = np.zeros((self.max_count, self.channels, self._noise_pixels(size)), np.float16)
        if rng.random() < self.prob:
            count = int(rng.integers(1, self.max_count, endpoint=True))
            for i in range(count):
                box = random_erasing_box(rng.random, *size, count)
                if box is not None:
                    boxes[i] = box
                    self._draw_noise(noise[i], box, rng)
        return {"erase_boxes": boxes, "erase_noise": noise}

    def _noise_pixels(self, size: tuple[int, int]) -> int:
        if self.mode != "pixel":
            return 1
        height, width = size
        rounding = (height + width) // 2 + 2  # each side is rounded up by at most half a pixel
        return int(height * width * _AREA[1]) + rounding

    def _draw_noise(self, noise: np.ndarray, box: Box, rng: np.random.Generator) -> None:
        if self.mode != "const":
            pixels = box.height * box.width if self.mode == "pixel" else 1
            noise[:, :pixels] = rng.standard_normal((self.channels, pixels), dtype=np.float32)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return a mask bool [N, 1, H, W] that is True inside each image's box; runs on the device.

    Args:
        boxes: integers [N, 4] of (top, left, height, width); a box of height or width 0 is empty.
        height: image height H in pixels.
        width: image width W in pixels.
    """
    top, left, box_height, box_width = boxes.reshape([-1, 4, 1, 1, 1]).unbind(1)  # [N, 1, 1, 1] each
    row = paddle.arange(height, dtype=boxes.dtype).reshape([1, 1, -1, 1])
    column = paddle.arange(width, dtype=boxes.dtype).reshape([1, 1, 1, -1])
    rows = paddle.logical_and(row >= top, row < top + box_height)
    columns = paddle.logical_and(column >= left, column < left + box_width)
    return paddle.logical_and(rows, columns)


def erase(images: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """Fill boxes with noise on the device; where boxes overlap, the last one is visible.

    Args:
        images: float [B, C, H, W], normalized.
        boxes: integers [B, K, 4] of (top, left, height, width), no larger than the images.
        noise: [B, K, C, N], the pixels of each box row by row, or one color for the whole box if N is 1.

    Returns:
        float [B, C, H, W].
    """
    batch, _, height, width = images.shape
    with paddle.amp.auto_cast(enable=False):
        for box, values in zip(boxes.astype("int64").unbind(1), noise.astype(images.dtype).unbind(1), strict=True):
            inside = inside_boxes(box, height, width)  # [B, 1, H, W]
            fill = values.unsqueeze(-1)  # [B, C, 1, 1], one color
            if values.shape[-1] > 1:
                top, left, _, box_width = box.reshape([-1, 4, 1, 1]).unbind(1)  # [B, 1, 1] each
                row = paddle.arange(height).reshape([-1, 1]) - top
                column = paddle.arange(width) - left
                index = (row * box_width + column) * inside.squeeze(1).astype("int64")  # [B, H, W] into [0, N)
                index = index.reshape([batch, 1, -1]).expand([batch, values.shape[1], height * width])
                fill = paddle.take_along_axis(values, index, axis=2).reshape(images.shape)
            images = paddle.where(inside.expand(images.shape), fill.expand(images.shape), images)
    return images
