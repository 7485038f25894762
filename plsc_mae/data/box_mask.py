"""Rectangles on the device: which pixels of a batch lie inside; CutMix and random erasing act there."""

from __future__ import annotations

import paddle
from paddle import Tensor


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return bool [N, 1, H, W], True inside.

    Args:
        boxes: integers [N, 4] of (top, left, height, width); without height or width, nothing lies inside.
        height: of the images, H.
        width: of the images, W.
    """
    top, left, box_height, box_width = boxes.reshape([-1, 4, 1, 1, 1]).unbind(1)  # [N, 1, 1, 1] each
    row = paddle.arange(height, dtype=boxes.dtype).reshape([1, 1, -1, 1])
    column = paddle.arange(width, dtype=boxes.dtype).reshape([1, 1, 1, -1])
    rows = paddle.logical_and(row >= top, row < top + box_height)
    columns = paddle.logical_and(column >= left, column < left + box_width)
    return paddle.logical_and(rows, columns)
