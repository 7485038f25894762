"""Results per class agree with the confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.class_counts import (
    chance_accuracy,
    count_classes,
    describe_imbalance,
    describe_majority,
    describe_missed,
    describe_worst,
)
from plsc_mae.analysis.classification import class_scores
from plsc_mae.analysis.confusion import confusion_matrix


def test_counts_are_those_of_the_confusion_matrix():
    """Class 6 has no images and class 5 is predicted for none."""
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 6, 200), rng.choice([0, 1, 2, 3, 4, 6], 200)
    predicted[labels == 1] = 1
    counts, matrix = count_classes(labels, predicted, 7), confusion_matrix(labels, predicted, 7)
    np.testing.assert_array_equal(counts.images, matrix.sum(axis=1))
    np.testing.assert_array_equal(counts.predicted, matrix.sum(axis=0))
    np.testing.assert_array_equal(counts.correct, np.diag(matrix))
    np.testing.assert_array_equal(counts.accuracy, class_scores(matrix).recall)
    np.fill_diagonal(matrix, 0)
    np.testing.assert_array_equal(counts.mistakes, matrix.max(axis=1))
    for number in range(7):
        if matrix[number].any():
            assert matrix[number, counts.mistaken_for[number]] == counts.mistakes[number]
        else:
            assert (counts.mistaken_for[number], counts.mistakes[number]) == (-1, 0)
    assert counts.mistaken_for[[1, 6]].tolist() == [-1, -1]


def test_classes_that_are_never_predicted_are_named():
    images, names = np.array([3, 2, 9, 5]), ["cat", "dog", "cow", "owl"]
    assert describe_missed(images, np.array([1, 0, 0, 2]), names) == "no image is classified as 'cow' (9 images)"
    assert describe_missed(images, np.array([1, 0, 1, 2]), names) == ""  # of the two dogs none was to be expected
    many = describe_missed(np.full(9, 4), np.zeros(9, np.int64), list("abcdefghi"))
    assert many.endswith("'e' (4 images) and 4 more")


def test_the_worst_class_is_named():
    """A class without images is none."""
    counts = count_classes(np.array([0, 0, 0, 2, 2]), np.array([0, 1, 0, 2, 0]), 3)
    assert describe_worst(counts, ["owl", "fox", "elk"]) == "worst class: 'elk', 1 of 2 right"


def test_the_majority_is_named_with_its_share():
    text = describe_majority(np.array([58, 144, 58]), ["cat", "dog", "owl"])
    assert "'dog'" in text
    assert "55.4 % of the 260 validation images" in text


def test_chance_is_the_share_of_the_most_frequent_class_and_two_deviations():
    assert chance_accuracy(np.array([25, 75])) == pytest.approx(100 * (0.75 + 2 * np.sqrt(0.75 * 0.25 / 100)))
    assert chance_accuracy(np.array([0, 8])) == 100


def test_chance_of_balanced_accuracy_is_that_of_guesses():
    images = np.array([80, 0, 10, 10])
    labels, rng = np.repeat(np.arange(4), images), np.random.default_rng(0)
    guesses = [count_classes(labels, rng.choice([0, 2, 3], 100), 4).balanced_accuracy for _ in range(2000)]
    expected = np.mean(guesses) + 2 * np.std(guesses)
    assert chance_accuracy(images, balanced=True) == pytest.approx(expected, abs=1)  # 1000 draws agree within 0.6
    assert count_classes(labels, np.zeros(100, np.int64), 4).balanced_accuracy == pytest.approx(100 / 3)
    assert chance_accuracy(np.array([0, 8]), balanced=True) == 100


def test_unbalanced_classes_have_advice():
    text = describe_imbalance(np.array([115, 0, 46]))
    assert "46 to 115 images" in text
    assert "--balance_classes" in text
    assert describe_imbalance(np.array([91, 0, 46])) == ""
    assert describe_imbalance(np.array([5])) == ""
