"""What shape a cloud of features has: whether it fills its space or has collapsed to a line, a point, a few clusters.

Numbers to watch while an encoder trains; none needs labels. n images, D width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.knn import Features, unit_rows

Doubles = npt.NDArray[np.float64]
PAIR_BLOCK = 1024


def feature_health(features: Features) -> dict[str, float]:
    """Measure features [n, D], n >= 2, by all functions of this module, under the names they have in the logs."""
    return {
        "feature_rank": effective_rank(features),
        "feature_std": unit_std(features),
        "feature_uniformity": uniformity(features),
        "feature_cosine": mean_cosine(features),
    }


def effective_rank(features: Features) -> float:
    """Count the directions that features really use: exp of the entropy of their singular values.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality": the singular values of the
    centered features, divided by their sum, are taken as a distribution. Directions whose extent is no more than the
    rounding of float32 do not count.

    Args:
        features: [n, D].

    Returns:
        From 1 (a line) to min(n - 1, D) (equally wide in every direction); 0 where all features are equal.
    """
    wide = features.astype(np.float64)
    values = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)
    values = values[values > np.finfo(np.float32).eps * np.linalg.norm(wide)]
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(values) else 0.0


def unit_std(features: Features) -> float:
    """Take the standard deviation of every dimension of features divided by their length, and its mean.

    Chen and He 2021, "Exploring simple Siamese representation learning", figure 2: 0 where all features point in one
    direction, at most 1 / sqrt(D), which directions spread evenly over the sphere have.

    Args:
        features: [n, D].
    """
    return float(_unit(features).std(axis=0).mean())


def uniformity(features: Features, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential of all pairs of different images, log mean exp(-t |x - y|^2).

    Wang and Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere": features are divided by their length. The lower, the more evenly they are spread.

    Args:
        features: [n, D], n >= 2.
        t: sharpness of the potential.

    Returns:
        0 where all features point in one direction; about -2t for directions spread evenly over a sphere of many
        dimensions.
    """
    unit, total = _unit(features), 0.0
    for start in range(0, len(unit), PAIR_BLOCK):
        rows = unit[start : start + PAIR_BLOCK]
        potentials = np.exp(2 * t * (rows @ unit.T - 1))  # |x - y|^2 = 2 - 2 cos
        total += potentials.sum() - potentials[np.arange(len(rows)), start + np.arange(len(rows))].sum()
    return float(np.log(total / _pairs(unit)))


def mean_cosine(features: Features) -> float:
    """Mean cosine of all pairs of different images: 1 where all features point in one direction, 0 where evenly spread.

    Args:
        features: [n, D], n >= 2.
    """
    unit = _unit(features)
    together = unit.sum(axis=0)
    return float((together @ together - (unit * unit).sum()) / _pairs(unit))


def _unit(features: Features) -> Doubles:
    return unit_rows(features).astype(np.float64)


def _pairs(unit: Doubles) -> int:
    if len(unit) < 2:
        raise ValueError(f"pairs of images are compared, and there is {len(unit)} image")
    return len(unit) * (len(unit) - 1)
