"""Metrics of multi-label classification and of regression.

A label or target of an image can be unknown (NaN); its metric then leaves out the image. Notation: n images, K labels
or targets.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.confusion import Doubles

Values = npt.NDArray[np.float32]


def average_precision(scores: Values, positive: npt.NDArray[np.bool_]) -> float:
    """Return the average precision, from 0 to 1, of one label; NaN without a positive image.

    It is the sum over the thresholds of (recall_i - recall_(i-1)) * precision_i, without interpolation, as in
    scikit-learn's `average_precision_score`. Images with equal scores share a threshold.

    Args:
        scores: [n]; a larger score means that the image is more likely positive.
        positive: whether the image has the label, [n].
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.append(np.diff(ranked) != 0, True)  # the last image of each threshold
    found, count = hits[last], np.flatnonzero(last) + 1
    return float((np.diff(found, prepend=0) * found / count).sum() / hits[-1])


def label_average_precisions(logits: Values, targets: Values) -> Doubles:
    """Return the average precision [K] of each label in percent; NaN for a label without a positive image.

    Args:
        logits: [n, K].
        targets: 0, 1 or NaN, [n, K].
    """
    known = np.isfinite(targets)
    columns = range(logits.shape[1])
    return 100 * np.array([average_precision(logits[known[:, i], i], targets[known[:, i], i] > 0.5) for i in columns])


def label_f1(logits: Values, targets: Values) -> Doubles:
    """Return F1 = 2 TP / (2 TP + FP + FN) [K] in percent; a label is predicted if its probability exceeds 0.5.

    F1 is NaN for a label that is neither true nor predicted for any image.
    """
    known, positive, predicted = np.isfinite(targets), targets > 0.5, logits > 0
    hits = (positive & predicted & known).sum(axis=0)
    whole = (positive & known).sum(axis=0) + (predicted & known).sum(axis=0)
    scores = np.full(logits.shape[1], np.nan)
    np.divide(200.0 * hits, whole, out=scores, where=whole > 0)
    return scores


def multilabel_metrics(logits: Values, targets: Values) -> dict[str, float]:
    """Return {"mAP", "macro_f1"} in percent: means over the labels, without labels whose value is NaN.

    Args:
        logits: [n, K].
        targets: 0, 1 or NaN, [n, K].
    """
    return {
        "mAP": mean_of_known(label_average_precisions(logits, targets)),
        "macro_f1": mean_of_known(label_f1(logits, targets)),
    }


def regression_metrics(predicted: Values, targets: Values) -> dict[str, float]:
    """Return {"mean_abs_error", "rmse", "r2"}: means over the targets of `target_errors`, without NaNs.

    Args:
        predicted: [n, K], in the units of the targets.
        targets: [n, K]; NaN is unknown.
    """
    absolute, rooted, explained = target_errors(predicted, targets)
    return {
        "mean_abs_error": mean_of_known(absolute),
        "rmse": mean_of_known(rooted),
        "r2": mean_of_known(explained),
    }


def target_errors(predicted: Values, targets: Values) -> tuple[Doubles, Doubles, Doubles]:
    """Return mean absolute error, root mean squared error and R^2, [K] each, over the known values of each target.

    R^2 = 1 - sum of squared errors / sum of squared deviations from the target's mean (1 for a perfect prediction). All
    three are NaN for a target without known values, R^2 also for one without variation.
    """
    errors = predicted.astype(np.float64) - targets
    values = targets.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of targets without a known value
        absolute, squared = np.nanmean(np.abs(errors), axis=0), np.nanmean(errors**2, axis=0)
        variance = np.nanmean((values - np.nanmean(values, axis=0)) ** 2, axis=0)
    explained = np.full(len(squared), np.nan)
    np.divide(squared, variance, out=explained, where=variance > 0)
    return absolute, np.sqrt(squared), 1 - explained


def mean_of_known(values: Doubles) -> float:
    """Return the mean of the finite values; NaN without any."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
