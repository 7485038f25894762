"""Statistics of features that reveal a collapse to a line, a point or a few clusters.

They can be monitored while an encoder trains and need no labels. Notation: n images, D width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.knn import Features, unit_rows

Doubles = npt.NDArray[np.float64]
PAIR_BLOCK = 1024
# Extreme values with their meaning, mostly collapsed and evenly distributed features. Masked pre-training lies between
# them, see docs/reference/training.md.
EXTREMES = {
    "feature_rank": "1: collapsed, the width: even",
    "feature_std": "0: collapsed, 1/sqrt(width): even",
    "feature_uniformity": "0: collapsed, near -4: even",
    "feature_cosine": "1: collapsed, 0: even",
    "feature_alignment": "0: both views alike, 2 - 2 feature_cosine: as unlike as different images",
}


def feature_health(features: Features) -> dict[str, float]:
    """Return all statistics of one set of features [n, D], n >= 2, by their names in the logs.

    Raises:
        ValueError: n < 2.
        numpy.linalg.LinAlgError: a feature is not finite.
        DataError: see `unit_rows`.
    """
    return {
        "feature_rank": effective_rank(features),
        "feature_std": unit_std(features),
        "feature_uniformity": uniformity(features),
        "feature_cosine": mean_cosine(features),
    }


def effective_rank(features: Features) -> float:
    """Return the effective rank of the centered features: exp of the entropy of their normalized singular values.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality". Singular values below
    the rounding error of float32 are ignored.

    Args:
        features: [n, D].

    Returns:
        A value from 1 (a line) to min(n - 1, D) (the same extent in every direction); 0 if all features are equal.

    Raises:
        numpy.linalg.LinAlgError: a feature is not finite.
    """
    wide = features.astype(np.float64)
    values = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)
    values = values[values > np.finfo(np.float32).eps * np.linalg.norm(wide)]
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(values) else 0.0


def unit_std(features: Features) -> float:
    """Return the standard deviation of the unit-length features, averaged over dimensions.

    Source: Chen and He 2021, "Exploring simple Siamese representation learning", figure 2.

    Args:
        features: [n, D].

    Returns:
        A value from 0 (all features have the same direction) to 1 / sqrt(D) (uniform on the sphere).
    """
    return float(_unit(features).std(axis=0).mean())


def uniformity(features: Features, t: float = 2.0) -> float:
    """Return the uniformity loss log mean exp(-t |x - y|^2) over all pairs of different images.

    x and y are the features divided by their lengths. Source: Wang and Isola 2020, "Understanding contrastive
    representation learning through alignment and uniformity on the hypersphere".

    Args:
        features: [n, D], n >= 2.
        t: sharpness of the Gaussian potential.

    Returns:
        0 if all features have the same direction; about -2t if they are uniform on a high-dimensional sphere.

    Raises:
        ValueError: n < 2.
        DataError: see `unit_rows`.
    """
    unit = _unit(features)
    total = 0.0
    for start in range(0, len(unit), PAIR_BLOCK):
        rows = unit[start : start + PAIR_BLOCK]
        potentials = np.exp(2 * t * (rows @ unit.T - 1))  # |x - y|^2 = 2 - 2 cos
        total += potentials.sum() - potentials[np.arange(len(rows)), start + np.arange(len(rows))].sum()
    return float(np.log(total / _pairs(unit)))


def alignment(first: Features, second: Features) -> float:
    """Return the alignment loss mean |x - y|^2 over pairs of views of the same image.

    x and y are the features divided by their lengths. Source: Wang and Isola 2020, with their alpha = 2. All features
    in one direction are perfectly aligned, so compare the value with that of different images, 2 - 2 `mean_cosine`.

    Args:
        first: features [n, D] of one view of each image.
        second: features [n, D] of another view of the same images.

    Returns:
        A value from 0 (both views of every image have the same direction) to 4.
    """
    return float(((_unit(first) - _unit(second)) ** 2).sum(axis=1).mean())


def mean_cosine(features: Features) -> float:
    """Return the mean cosine similarity of all pairs of different images.

    Args:
        features: [n, D], n >= 2.

    Returns:
        1 if all features have the same direction; about 0 if they are uniform on the sphere.

    Raises:
        ValueError: n < 2.
        DataError: see `unit_rows`.
    """
    unit = _unit(features)
    total = unit.sum(axis=0)
    return float((total @ total - (unit * unit).sum()) / _pairs(unit))


def _unit(features: Features) -> Doubles:
    return unit_rows(features).astype(np.float64)


def _pairs(unit: Doubles) -> int:
    if len(unit) < 2:
        raise ValueError(f"expected features of at least 2 images, got {len(unit)}")
    return len(unit) * (len(unit) - 1)
