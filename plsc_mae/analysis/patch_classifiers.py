"""Classification of patches by their features, and conversion between patches and pixels, for segmentation probes.

Notation: P training patches, Q queries, L patches of an image on a grid of h x w, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.knn import class_scores, nearest_neighbors
from plsc_mae.analysis.linear import (
    PENALTIES,
    LinearClassifier,
    Standardization,
    choose_penalty,
    fit_on_axes,
    principal_axes,
    standardization,
)
from plsc_mae.data.segmentation import UNLABELED

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_BAND_VALUES = 1 << 24  # upsampled scores that are held in memory at a time


@dataclass(frozen=True)
class PatchClassifiers:
    """A linear and a k-NN classifier of patches; both standardize the features with the training statistics."""

    statistics: Standardization  # mean and scale of the training features
    linear: LinearClassifier  # linear classifier of standardized features [D]
    l2: float  # L2 penalty of `linear`
    bank: Features  # standardized training features [P, D]
    labels: Indices  # class indices [P] of `bank`
    num_classes: int  # C
    k: int  # number of neighbors

    def scores(self, patches: Features) -> dict[str, Features]:
        """Return {"linear": log probabilities, "knn": shares of the votes}, each [Q, C], for patches [Q, D].

        Raises:
            DataError: a feature is not finite.
        """
        queries = self.statistics.apply(patches)
        similarities, neighbors = nearest_neighbors(self.bank, queries, self.k)
        votes = class_scores(similarities, self.labels[neighbors], self.num_classes)
        return {
            "linear": self.linear.log_probabilities(queries).astype(np.float32),
            "knn": (votes / votes.sum(axis=1, keepdims=True)).astype(np.float32),
        }


def fit_patch_classifiers(
    features: Features, labels: Indices, held: npt.NDArray[np.bool_], num_classes: int, k: int
) -> PatchClassifiers:
    """Fit both classifiers to the features of training patches.

    The linear one is multinomial logistic regression, as in `linear.linear_accuracy`; its L2 penalty has the smallest
    cross entropy on the held-out patches after a fit to the others. The final fit uses all patches.

    Args:
        features: [P, D].
        labels: class indices [P].
        held: [P], True for held-out patches; without any, the penalty is the largest. Hold out whole images, because
            patches of one image are alike.
        num_classes: C.
        k: number of neighbors, at most P.

    Raises:
        DataError: a feature is not finite.
    """
    statistics = standardization(features)
    bank = statistics.apply(features)
    basis, variance = principal_axes(bank)
    train = bank @ basis
    l2 = choose_penalty(train, labels, num_classes, held, variance, PENALTIES)
    fitted = fit_on_axes(train, labels, num_classes, l2, variance)
    linear = LinearClassifier(basis.astype(np.float64) @ fitted.weight, fitted.bias)
    return PatchClassifiers(statistics, linear, l2, bank, labels, num_classes, k)


def patch_labels(mask: npt.NDArray[Any], grid: tuple[int, int], num_classes: int) -> Indices:
    """Return the most frequent class [L] of each patch; `UNLABELED` if less than half of its pixels have a class.

    Args:
        mask: class indices [H, W]; negative ones are unlabeled.
        grid: (h, w) of the patches, which divide the mask evenly.
        num_classes: C.
    """
    height, width = mask.shape
    rows = (2 * np.arange(height) + 1) * grid[0] // (2 * height)  # the patch in which a pixel's center lies
    columns = (2 * np.arange(width) + 1) * grid[1] // (2 * width)
    patch = rows[:, None] * grid[1] + columns
    number = grid[0] * grid[1]
    labeled = mask >= 0
    cells = patch[labeled] * num_classes + mask[labeled]
    counts = np.bincount(cells, minlength=number * num_classes).reshape(number, num_classes)
    enough = 2 * counts.sum(axis=1) >= np.maximum(np.bincount(patch.ravel(), minlength=number), 1)
    return np.where(enough, counts.argmax(axis=1), UNLABELED)


def upsample_classes(scores: Features, grid: tuple[int, int], size: tuple[int, int]) -> Indices:
    """Return the best class of each pixel, [H, W] for `size` = (H, W), after bilinear upsampling of the scores.

    Positions are those of `align_corners=False`, as in the usual segmentation heads.

    Args:
        scores: class scores [L, C] of the patches.
        grid: (h, w) of the patches.
        size: (H, W).
    """
    across = np.einsum("Ww,hwc->hWc", _bilinear(grid[1], size[1]), scores.reshape(*grid, -1))
    down = _bilinear(grid[0], size[0])
    step = max(1, _BAND_VALUES // across[0].size)
    bands = [
        np.einsum("Hh,hWc->HWc", down[start : start + step], across).argmax(axis=2) for start in range(0, size[0], step)
    ]
    return np.concatenate(bands)


def _bilinear(inputs: int, outputs: int) -> Features:
    """Return the matrix [outputs, inputs] of linear interpolation along one axis."""
    position = ((np.arange(outputs) + 0.5) * inputs / outputs - 0.5).clip(0, inputs - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(inputs))).astype(np.float32)
