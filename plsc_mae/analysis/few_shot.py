"""Accuracy of frozen features with few labels: logistic regression on fixed choices of training images.

The classifier is that of `analysis.linear`, fitted to the chosen images alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

from plsc_mae.analysis.labeled import LabeledFeatures
from plsc_mae.analysis.linear import linear_accuracy
from plsc_mae.data.few_labels import Rows, fraction, shots
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.errors import DataError

CONFIDENCE = 0.95


class Budget(NamedTuple):
    """Number of labels: images per class or, if `share` is positive, a share of the images of every class."""

    shots: int
    share: float = 0.0

    def __str__(self) -> str:
        return f"{100 * self.share:g} %" if self.share else f"{self.shots} per class"

    def choose(self, images: ImageList, seed: int) -> Rows:
        """Choose images at random; return their sorted indices. Raise DataError if a class has fewer than `shots`."""
        return fraction(images, self.share, seed) if self.share else shots(images, self.shots, seed)


class Estimate(NamedTuple):
    """Mean of accuracies, and half the width of its 95 % confidence interval (Student's t), NaN for one accuracy."""

    mean: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from `values`, assumed to be independent and normally distributed."""
        count = len(values)
        if count < 2:
            return cls(float(np.mean(values)), float("nan"))
        quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        return cls(float(np.mean(values)), float(quantile * np.std(values, ddof=1) / np.sqrt(count)))

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if np.isnan(self.margin) else f"{self.mean:.1f} ± {self.margin:.1f}"


Choices = Mapping[Budget, Sequence[Rows]]  # indices of the chosen images for each seed


def make_choices(
    images: ImageList, shots: Sequence[int], fractions: Sequence[float], seeds: Sequence[int]
) -> dict[Budget, list[Rows]]:
    """Choose images for each budget and seed; return their sorted indices by budget, in the order of the seeds.

    Raises:
        DataError: a class has fewer images than one of `shots`.
    """
    budgets = [*(Budget(count) for count in shots), *(Budget(0, share) for share in fractions)]
    return {budget: [budget.choose(images, seed) for seed in seeds] for budget in budgets}


def few_shot_accuracies(
    bank: LabeledFeatures, numbers: npt.NDArray[np.int64], queries: LabeledFeatures, choices: Choices
) -> dict[Budget, list[float]]:
    """Return the top-1 accuracies in percent of every budget, one per choice.

    Args:
        bank: features of training images.
        numbers: their indices [n] in the list of training images; unreadable images are missing.
        queries: features of validation images.
        choices: indices of the chosen training images.

    Raises:
        DataError: a feature is not finite, or none of the chosen images could be read.
    """
    return {budget: [_accuracy(bank, numbers, queries, rows) for rows in each] for budget, each in choices.items()}


def _accuracy(bank: LabeledFeatures, numbers: npt.NDArray[np.int64], queries: LabeledFeatures, rows: Rows) -> float:
    place = np.flatnonzero(np.isin(numbers, rows))
    if not len(place):
        raise DataError("none of the chosen training images can be read; repair or replace the files")
    found = linear_accuracy(bank.features[place], bank.labels[place], queries.features, queries.labels)
    return found.top1
