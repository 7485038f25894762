"""Which pixels lie inside a box, against slicing."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.data.box_mask import inside_boxes

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_inside_is_the_slice(dtype):
    boxes = np.array([[0, 0, 5, 7], [1, 2, 3, 4], [4, 6, 1, 1], [2, 2, 0, 0], [2, 2, 3, 0], [3, 5, 9, 9]], dtype)
    inside = inside_boxes(paddle.to_tensor(boxes), 5, 7)
    assert inside.dtype == paddle.bool
    expected = np.zeros((6, 1, 5, 7), bool)
    for image, (top, left, height, width) in zip(expected, boxes, strict=True):
        image[0, top : top + height, left : left + width] = True
    np.testing.assert_array_equal(inside.numpy(), expected)
