"""Results per class of a classifier, from the predicted classes of labeled images.

Notation: n images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plsc_mae.analysis.classification import percent
from plsc_mae.analysis.confusion import Counts, Doubles
from plsc_mae.wording import counted, guides

FEWEST_MISSED, MISSED_NAMES = 3, 5  # images of a class that is reported as missed; number of such names in a sentence
DEVIATIONS = 2  # standard deviations up to which chance explains a metric
UNBALANCED = 2  # images of the largest class, divided by those of the smallest, from which there is advice


class ClassCounts(NamedTuple):
    """Counts of every class."""

    images: Counts  # number of images [K] of each class
    correct: Counts  # number of them [K] that are classified correctly
    predicted: Counts  # number of images [K] of any class that are classified as this one
    mistaken_for: Counts  # the class [K] that most of the other images of each class are classified as; -1 without any
    mistakes: Counts  # the number of these images [K]

    @property
    def accuracy(self) -> Doubles:
        """Accuracy in percent [K] of the images of each class, which is the recall; NaN for a class without images."""
        return percent(self.correct, self.images)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of `accuracy` over the classes with images."""
        return float(np.nanmean(self.accuracy))


def count_classes(labels: Counts, predicted: Counts, num_classes: int) -> ClassCounts:
    """Return the counts of images with class numbers [n] and predicted class numbers [n]; K is `num_classes`.

    The memory does not grow with K squared, as that of a confusion matrix does.
    """
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    order = np.argsort(counts, kind="stable")  # the most frequent mistake of a class is written last
    truth, taken_for = np.divmod(pairs[order], num_classes)
    mistaken_for, mistakes = np.full(num_classes, -1, np.int64), np.zeros(num_classes, np.int64)
    mistaken_for[truth], mistakes[truth] = taken_for, counts[order]
    return ClassCounts(
        np.bincount(labels, minlength=num_classes),
        np.bincount(labels[~wrong], minlength=num_classes),
        np.bincount(predicted, minlength=num_classes),
        mistaken_for,
        mistakes,
    )


def describe_missed(images: Counts, predicted: Counts, names: Sequence[str]) -> str:
    """Return a sentence part about classes with images that no image is classified as; "" without such classes.

    Args:
        images: number of images [K] of each class.
        predicted: number of images [K] that are classified as each class.
        names: the K names of the classes.
    """
    missed = np.flatnonzero((images >= FEWEST_MISSED) & (predicted == 0))
    if not len(missed):
        return ""
    shown = ", ".join(f"'{names[i]}' ({counted(int(images[i]), 'image')})" for i in missed[:MISSED_NAMES])
    more = f" and {len(missed) - MISSED_NAMES} more" if len(missed) > MISSED_NAMES else ""
    return f"no image is classified as {shown}{more}"


def describe_worst(counts: ClassCounts, names: Sequence[str]) -> str:
    """Return a sentence part about the class with the lowest accuracy; `names` are those of the K classes."""
    worst = int(np.nanargmin(counts.accuracy))
    return f"worst class: '{names[worst]}', {counts.correct[worst]} of {counts.images[worst]} right"


def describe_imbalance(images: Counts | None) -> str:
    """Return a sentence part about training on unbalanced classes; "" if no class has twice the images of another.

    Args:
        images: number of training images [K] of each class; None if it is unknown, which gives "".
    """
    if images is None:
        return ""
    sizes = images[images > 0]
    if sizes.max() < UNBALANCED * sizes.min():
        return ""
    return (
        f"the classes are unbalanced, {sizes.min()} to {sizes.max()} images: `plsc-mae finetune --balance_classes`, or "
        f"linprobe with it, draws them equally often: {guides('few-images')}"
    )


def describe_majority(images: Counts, names: Sequence[str]) -> str:
    """Return a sentence part about the accuracy of always answering the most frequent class.

    Args:
        images: number of validation images [K] of each class.
        names: the K names of the classes.
    """
    most, count = int(images.argmax()), int(images.sum())
    share = 100 * images[most] / count
    others = int((images == images[most]).sum()) - 1
    rank = f"as frequent as {counted(others, 'other class')}" if others else "the most frequent class"
    return (
        f"always answering '{names[most]}', {rank}, is right for {share:.1f} % of the "
        f"{counted(count, 'validation image')}"
    )


def chance_accuracy(images: Counts, *, balanced: bool = False) -> float:
    """Return the accuracy in percent that predictions that ignore the images rarely exceed.

    It is the share of the most frequent class plus two standard deviations of its estimate. The share of balanced
    accuracy is 1 / K, and the deviation is that of guesses.

    Args:
        images: number of images [K] of each class.
        balanced: whether to return the balanced accuracy, over the classes with images.
    """
    sizes = images[images > 0]
    share = 1 / len(sizes) if balanced else sizes.max() / sizes.sum()
    count = len(sizes) ** 2 / np.sum(1 / sizes) if balanced else sizes.sum()
    return 100 * float(share + DEVIATIONS * np.sqrt(share * (1 - share) / count))
