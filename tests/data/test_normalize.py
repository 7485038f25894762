"""Normalization on the device; the comparison with torchvision is in test_transforms."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD

pytestmark = pytest.mark.compat


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), (INCEPTION_MEAN, INCEPTION_STD)])
def test_normalize_is_the_formula_channels_first(pixels, mean, std):
    images = Normalize(mean, std)(paddle.to_tensor(pixels))
    assert images.dtype == paddle.float32
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)  # float64
    np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=1e-6)  # float32 rounding of values up to 2.6


def test_denormalize_is_the_inverse(pixels):
    normalize = Normalize()
    restored = normalize.denormalize(normalize(paddle.to_tensor(pixels))).numpy()  # [B, 3, H, W] in [0, 1]
    np.testing.assert_array_equal(np.round(restored * 255).transpose(0, 2, 3, 1), pixels)


def test_constants_stay_out_of_the_state_dict():
    assert Normalize().state_dict() == {}
    assert Normalize().parameters() == []
