"""The confusion matrix of images or pixels, and metrics of semantic segmentation: IoU and pixel accuracy.

Notation: C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class SegmentationScores(NamedTuple):
    """Scores of a segmentation in percent."""

    # intersection over union [C] of each class, TP / (TP + FP + FN) over the pixels of
    # all images; NaN for a class that neither occurs nor is predicted
    iou: Doubles
    mean_iou: float  # mean of `iou` without the NaNs
    pixel_accuracy: float  # correct pixels among all labeled ones


def confusion_matrix(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], num_classes: int) -> Counts:
    """Count pixels or images by true class (row) and predicted class (column), [C, C].

    Args:
        truth: class indices of any shape; negative ones are unlabeled and not counted.
        predicted: class indices, of the same shape.
        num_classes: C.

    Raises:
        ValueError: the shapes differ, or a true or predicted index at a labeled position is outside [0, C).
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"true classes of shape {truth.shape} and predicted ones of shape {predicted.shape}")
    labeled = truth >= 0
    rows, columns = truth[labeled].astype(np.int64), predicted[labeled].astype(np.int64)
    if rows.size and (max(rows.max(), columns.max()) >= num_classes or columns.min() < 0):
        raise ValueError(f"a class index is outside [0, {num_classes})")
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_scores(confusion: Counts) -> SegmentationScores:
    """Return the scores of a confusion matrix [C, C] with at least one pixel."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = np.full(len(hits), np.nan)
    np.divide(100 * hits, union, out=iou, where=union > 0)
    return SegmentationScores(iou, float(np.nanmean(iou)), float(100 * hits.sum() / confusion.sum()))
