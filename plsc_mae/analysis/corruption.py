"""Corruption errors of ImageNet-C (Hendrycks and Dietterich 2019, section 4.3), relative to AlexNet's.

The errors of AlexNet, means over the five severities, are those published in hendrycks/robustness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
ALEXNET_ERRORS = {  # percent
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
# Further corruptions of ImageNet-C, which do not enter the mean corruption error.
EXTRA_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")


def corruption_errors(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the corruption errors in percent by corruption, for corruptions with a published error of AlexNet.

    Args:
        errors: top-1 error in percent at the severities 1 to 5, by corruption.
    """
    return {
        name: 100 * float(np.mean(values)) / ALEXNET_ERRORS[name]
        for name, values in errors.items()
        if name in ALEXNET_ERRORS
    }


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float | None:
    """Return the mean of the 15 corruption errors (mCE) in percent; None if a corruption is missing."""
    relative = corruption_errors(errors)
    return float(np.mean(list(relative.values()))) if len(relative) == len(ALEXNET_ERRORS) else None
