"""Pictures of images of any channels."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.data.depth import PixelRange
from plsc_mae.data.display import RGB_DISPLAY, Display, cross_out
from plsc_mae.data.pixels import PixelFormat

DEEP = PixelFormat(13, range=PixelRange(0, 4095))


def test_the_choice_of_channels():
    assert Display.of(PixelFormat()) == RGB_DISPLAY
    assert Display.of(PixelFormat(1)) == Display((0,))
    assert Display.of(PixelFormat(2)) == Display((0,))
    assert Display.of(DEEP) == Display((0, 1, 2), stretched=True)
    assert Display.of(DEEP, (4, 3, 2)).channels == (3, 2, 1)


def test_the_original_stretches_all_pictures_alike():
    ramp = np.linspace(0.1, 0.2, 101, dtype=np.float32)
    original = np.tile(ramp[None, :, None, None], (1, 1, 5, 13))
    drawn = Display.of(DEEP).draw({"original": original, "half": original * 0 + 0.15})
    picture = drawn["original"]
    assert picture.shape == (1, 101, 5, 3)
    assert picture.dtype == np.uint8
    assert (picture[0, :3] == 0).all()
    assert (picture[0, -3:] == 255).all()
    assert set(drawn["half"].flatten().tolist()) <= {127, 128}


def test_a_constant_image_and_gray():
    flat = Display((0,), stretched=True).draw({"": np.full((1, 4, 4, 2), 0.3)})[""]
    assert flat.shape == (1, 4, 4, 3)
    rgb = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    assert RGB_DISPLAY.draw_pixels(rgb) is rgb


@pytest.mark.parametrize("side", [1, 2, 4, 14, 16])
def test_hidden_patches_are_crossed_out(side):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2 * side, 3 * side, 3), np.uint8)
    hidden = np.array([[[True, False, True], [False] * 3], [[True] * 3, [False, True, True]]])
    drawn = cross_out(pictures, hidden)
    where = hidden.repeat(side, axis=1).repeat(side, axis=2)
    np.testing.assert_array_equal(drawn[~where], pictures[~where])
    patch = drawn[0, :side, :side]
    np.testing.assert_array_equal(drawn[1, side:, side : 2 * side], patch)
    levels = {tuple(color) for color in patch.reshape(-1, 3).tolist()}
    assert levels == ({(64, 64, 64)} if side < 3 else {(64, 64, 64), (128, 128, 128)})
    np.testing.assert_array_equal(patch, patch[:, ::-1])
    assert (patch[0, 0] == 64).all()


def test_four_channels_of_8_bits_are_shown_as_three():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    np.testing.assert_array_equal(Display.of(PixelFormat(4)).draw_pixels(pixels), pixels[..., :3])
