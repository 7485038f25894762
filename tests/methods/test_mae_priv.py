"""The normalization of MAE-priv, whose options choose between two sets of statistics."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.config.mae_priv import MAEPrivConfig
from plsc_mae.data.transforms import IMAGENET_MEAN
from plsc_mae.methods import load_method

HALVES = {"imagenet_inception_mean_and_std": True}
GIVEN = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, IMAGENET_MEAN),
        (HALVES, (0.5, 0.5, 0.5)),
        (GIVEN, GIVEN["mean"]),
        (HALVES | GIVEN, GIVEN["mean"]),
        ({"in_chans": 4, "mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5,) * 4}, (0.1, 0.2, 0.3, 0.4)),
        ({"in_chans": 2, **HALVES}, (0.5, 0.5)),
    ],
)
def test_images_are_normalized_by_the_statistics_of_the_options(options, mean):
    normalize = load_method("mae_priv").normalize(MAEPrivConfig(**options))
    np.testing.assert_array_equal(normalize.mean.numpy().flatten(), np.float32(mean))
