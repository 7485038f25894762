"""Pictures of pixels for every method."""

from __future__ import annotations

import numpy as np
import paddle

from plsc_mae.data.display import Display
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.methods.base import to_pictures


def test_four_channels_of_8_bits_are_drawn_as_three():
    pixels = np.random.default_rng(0).random((2, 4, 3, 5), np.float32)
    four = to_pictures({"original": paddle.to_tensor(pixels)}, Display.of(PixelFormat(4)))["original"]
    three = to_pictures({"original": paddle.to_tensor(pixels[:, :3])})["original"]
    assert four.shape == (2, 3, 5, 3)
    np.testing.assert_array_equal(four, three)
