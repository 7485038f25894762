"""Scores of a segmentation, against counts pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.confusion import confusion_matrix, segmentation_scores

CLASSES = 4


@pytest.fixture
def maps():
    """True classes with unlabeled pixels, and predicted classes; class 3 is neither true nor predicted."""
    rng = np.random.default_rng(0)
    return rng.integers(-1, 3, (5, 7, 6)), rng.integers(0, 3, (5, 7, 6))


def test_scores_equal_a_count_of_pixels(maps):
    truth, predicted = maps
    pairs = [(t, p) for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True) if t >= 0]
    confusion = confusion_matrix(truth, predicted, CLASSES)
    assert [[pairs.count((t, p)) for p in range(CLASSES)] for t in range(CLASSES)] == confusion.tolist()
    scores = segmentation_scores(confusion)
    for index in range(3):
        both = sum(t == p == index for t, p in pairs)
        either = sum(index in pair for pair in pairs)
        assert scores.iou[index] == pytest.approx(100 * both / either)
    assert np.isnan(scores.iou[3])
    assert scores.mean_iou == pytest.approx(scores.iou[:3].mean())
    assert scores.pixel_accuracy == pytest.approx(100 * sum(t == p for t, p in pairs) / len(pairs))


def test_a_predicted_class_without_pixels_counts_as_zero():
    scores = segmentation_scores(confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), 3))
    assert scores.iou.tolist() == [50, 100, 0]
    assert scores.mean_iou == 50


def test_parts_add_up(maps):
    truth, predicted = maps
    parts = sum(confusion_matrix(*pair, CLASSES) for pair in zip(truth, predicted, strict=True))
    assert (parts == confusion_matrix(truth, predicted, CLASSES)).all()


@pytest.mark.parametrize(("truth", "predicted"), [([0, 4], [0, 0]), ([0, 0], [0, 4]), ([0, 0], [0, -1]), ([0], [0, 1])])
def test_indices_outside_the_classes_and_other_shapes_are_errors(truth, predicted):
    with pytest.raises(ValueError, match=r"class|shape"):
        confusion_matrix(np.array(truth), np.array(predicted), CLASSES)
