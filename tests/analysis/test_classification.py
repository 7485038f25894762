"""Metrics of classifiers, of sets of labels and of numbers, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis import classification
from plsc_mae.analysis.classification import calibration, class_scores, classification_metrics, topk_in_set
from plsc_mae.analysis.confusion import confusion_matrix
from plsc_mae.analysis.label_metrics import (
    average_precision,
    label_average_precisions,
    label_f1,
    multilabel_metrics,
    regression_metrics,
)

metrics = pytest.importorskip("sklearn.metrics")  # in the extra `dev`

RNG = np.random.default_rng(0)
CLASSES = 7


@pytest.fixture
def classified():
    """Logits [300, 7] that are right in about half of the images, and labels without class 5."""
    labels = RNG.choice([0, 1, 2, 3, 4, 6], 300)
    logits = RNG.standard_normal((300, CLASSES)).astype(np.float32)
    logits[np.arange(300), labels] += 1.5
    return logits, labels


def test_classes_against_scikit_learn(classified):
    logits, labels = classified
    predicted = logits.argmax(axis=1)
    found = classification_metrics(logits, labels)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found["balanced_acc"] == pytest.approx(100 * balanced, abs=1e-9)
    assert found["macro_f1"] == pytest.approx(100 * metrics.f1_score(labels, predicted, average="macro"), abs=1e-9)
    confusion = confusion_matrix(labels, predicted, CLASSES)
    assert (confusion == metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))).all()
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), zero_division=np.nan
    )
    scores = class_scores(confusion)
    for ours, theirs in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
        np.testing.assert_allclose(ours, 100 * theirs, atol=1e-9)
    assert (scores.images == images).all()


def test_a_class_that_is_neither_there_nor_predicted_has_no_part():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 1]]
    found = classification_metrics(logits, np.array([0, 1, 0]))
    assert found["balanced_acc"] == pytest.approx(75)
    assert found["macro_f1"] == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)


def test_calibration_against_its_definition_and_scikit_learn(classified):
    logits, labels = classified
    exponents = np.exp(logits.astype(np.float64))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = calibration(logits, labels)
    assert found.error == pytest.approx(100 * expected, abs=1e-9)
    assert found.images.sum() == len(labels)
    shares = pytest.importorskip("sklearn.calibration").calibration_curve(right, confidence, n_bins=15)
    known = found.images > 0
    np.testing.assert_allclose(found.accuracy[known], 100 * shares[0])
    np.testing.assert_allclose(found.confidence[known], 100 * shares[1])


def test_calibration_holds_a_block_of_images_at_a_time(classified, monkeypatch):
    logits, labels = classified
    whole, sizes, log_softmax = calibration(logits, labels), [], classification.log_softmax
    monkeypatch.setattr(classification, "BLOCK", 16)
    monkeypatch.setattr(classification, "log_softmax", lambda x, axis: sizes.append(len(x)) or log_softmax(x, axis))
    for ours, expected in zip(calibration(logits, labels), whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert max(sizes) <= 16
    assert sum(sizes) == len(labels)


def test_several_right_classes():
    logits = np.array([[3, 2, 1, 0], [0, 1, 2, 3]], np.float32)
    accepted = np.array([[False, True, True, False], [False, False, False, True]])
    assert topk_in_set(logits, accepted, 1).tolist() == [False, True]
    assert topk_in_set(logits, accepted, 2).tolist() == [True, True]
    assert topk_in_set(logits, accepted, 9).tolist() == [True, True]


def test_labels_against_scikit_learn():
    targets = (RNG.random((200, 5)) < 0.3).astype(np.float32)
    logits = np.round(RNG.standard_normal((200, 5)) + targets, 1).astype(np.float32)  # rounded: many equal scores
    expected = [metrics.average_precision_score(targets[:, i], logits[:, i]) for i in range(5)]
    np.testing.assert_allclose(label_average_precisions(logits, targets), 100 * np.array(expected))
    found = multilabel_metrics(logits, targets)
    assert found["mAP"] == pytest.approx(100 * metrics.average_precision_score(targets, logits, average="macro"))
    assert found["macro_f1"] == pytest.approx(100 * metrics.f1_score(targets, logits > 0, average="macro"))


def test_unknown_labels_are_left_out():
    targets = (RNG.random((100, 3)) < 0.4).astype(np.float32)
    logits = RNG.standard_normal((100, 3)).astype(np.float32)
    targets[RNG.random((100, 3)) < 0.3] = np.nan
    targets[:, 2] = np.where(np.isnan(targets[:, 2]), np.nan, 0)  # never positive
    known = [np.isfinite(targets[:, i]) for i in range(3)]
    expected = [metrics.average_precision_score(targets[k, i], logits[k, i]) for i, k in enumerate(known[:2])]
    np.testing.assert_allclose(label_average_precisions(logits, targets), [*(100 * np.array(expected)), np.nan])
    assert multilabel_metrics(logits, targets)["mAP"] == pytest.approx(100 * np.mean(expected))
    f1 = [metrics.f1_score(targets[k, i], logits[k, i] > 0, zero_division=0) for i, k in enumerate(known)]
    np.testing.assert_allclose(label_f1(logits, targets), 100 * np.array(f1))
    assert np.isnan(average_precision(logits[:, 0], np.zeros(100, bool)))


def test_numbers_against_scikit_learn():
    truth = (RNG.standard_normal((80, 2)) * [3, 100] + [1, 500]).astype(np.float32)
    predicted = (truth + RNG.standard_normal((80, 2)) * [1, 40]).astype(np.float32)
    found = regression_metrics(predicted, truth)
    assert found["mean_abs_error"] == pytest.approx(metrics.mean_absolute_error(truth, predicted), rel=1e-6)
    rooted = metrics.mean_squared_error(truth, predicted, multioutput="raw_values") ** 0.5
    assert found["rmse"] == pytest.approx(rooted.mean(), rel=1e-6)
    assert found["r2"] == pytest.approx(metrics.r2_score(truth, predicted), rel=1e-6)
    truth[::3, 0] = np.nan
    known = np.isfinite(truth[:, 0])
    parts = [
        metrics.r2_score(truth[known, 0], predicted[known, 0]),
        metrics.r2_score(truth[:, 1], predicted[:, 1]),
    ]
    assert regression_metrics(predicted, truth)["r2"] == pytest.approx(np.mean(parts), rel=1e-6)
    constant = np.ones((4, 1), np.float32)
    assert np.isnan(regression_metrics(constant + 1, constant)["r2"])
