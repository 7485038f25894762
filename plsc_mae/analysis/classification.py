"""Metrics of a classifier on a set of labeled images, computed from the logits of all images.

Notation: n images, K classes. Metrics are in percent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from plsc_mae.analysis.confusion import Counts, Doubles, confusion_matrix

ECE_BINS = 15  # Guo et al. 2017
TOP = 5  # classes of the top-5 accuracy
BLOCK = 4096  # largest number of images whose probabilities are in memory together, in float64

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class ClassScores(NamedTuple):
    """Scores of every class."""

    images: Counts  # number of images [K] of each class
    recall: Doubles  # accuracy [K] over the images of the class; NaN for a class without images
    # share [K] of correct ones among the predictions of the class; NaN for a class that is not predicted
    precision: Doubles
    f1: Doubles  # harmonic mean [K] of recall and precision, 2 TP / (2 TP + FP + FN); NaN for a class with neither


class Calibration(NamedTuple):
    """Confidence and accuracy of images, which are sorted into bins of equal width by their confidence.

    The confidence is the largest class probability of an image.
    """

    images: Counts  # number of images [bins] in each bin; bin i holds confidences in (i / bins, (i + 1) / bins]
    confidence: Doubles  # mean confidence [bins], from 0 to 100; NaN for an empty bin
    accuracy: Doubles  # accuracy [bins], from 0 to 100; NaN for an empty bin

    @property
    def error(self) -> float:
        """Expected calibration error: mean over images of |accuracy - confidence| of their bins (Guo et al. 2017)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.images) / self.images.sum())


def classification_metrics(logits: Logits, labels: Labels) -> dict[str, float]:
    """Return {"balanced_acc", "macro_f1", "ece"} of logits [n, K] and class numbers [n].

    Balanced accuracy is the mean recall of the classes that have images. Macro F1 is the mean over the classes that
    have images or are predicted, as in scikit-learn. ECE is the expected calibration error with 15 bins.

    Raises:
        ValueError: a class number is not below K.
    """
    scores = class_scores(confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1]))
    return {
        "balanced_acc": float(np.nanmean(scores.recall)),
        "macro_f1": float(np.nanmean(scores.f1)),
        "ece": calibration(logits, labels).error,
    }


def class_scores(confusion: Counts) -> ClassScores:
    """Return the scores of every class for a confusion matrix [K, K] of true (row) and predicted classes (column)."""
    hits, images, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(images, percent(hits, images), percent(hits, predicted), percent(2 * hits, images + predicted))


def calibration(logits: Logits, labels: Labels, bins: int = ECE_BINS) -> Calibration:
    """Return the calibration of logits [n, K] for images of class numbers [n], in `bins` bins."""
    blocks = np.array_split(logits, max(1, -(-len(logits) // BLOCK)))
    confidence = np.concatenate([np.exp(log_softmax(rows.astype(np.float64), axis=1).max(axis=1)) for rows in blocks])
    place = np.clip(np.ceil(np.nan_to_num(confidence) * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    hits = np.bincount(place, weights=logits.argmax(axis=1) == labels, minlength=bins)
    return Calibration(
        count, percent(np.bincount(place, weights=confidence, minlength=bins), count), percent(hits, count)
    )


def topk_in_set(logits: Logits, accepted: npt.NDArray[np.bool_], k: int) -> npt.NDArray[np.bool_]:
    """Return bool [n]: True if one of the k classes with the largest logits [n, K] is `accepted`, bool [n, K]."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return np.asarray(np.take_along_axis(accepted, best, axis=1).any(axis=1))


def percent(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Doubles:
    """Return 100 * part / whole in float64, with NaN where `whole` is 0."""
    share = np.full(len(part), np.nan)
    np.divide(100.0 * part, whole, out=share, where=whole > 0)
    return share
