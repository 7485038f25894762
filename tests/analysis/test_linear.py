"""Logistic regression against Newton's method, and invariances of its accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.linear import fit_on_axes, linear_accuracy, principal_axes, standardize
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]

CLASSES = 3


def blobs(count: int, spread: float, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points around one center per class, in columns with very different scales and large means."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(CLASSES, width))
    labels = np.arange(count) % CLASSES
    points = centers[labels] + spread * rng.normal(size=(count, width))
    return (points * 10.0 ** np.arange(width) / 100 + 3).astype(np.float32), labels


def scores(features: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    basis, variance = principal_axes(features)
    return fit_on_axes(features @ basis, labels, CLASSES, l2, variance).log_probabilities(features @ basis)


def newton(features: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """Return the log-probabilities at the optimum, found by full Newton steps on all weights and biases."""
    rows = np.hstack([features.astype(np.float64), np.ones((len(features), 1))])
    penalty = np.kron(np.diag([l2] * features.shape[1] + [1e-12]), np.eye(CLASSES))
    theta = np.zeros((rows.shape[1], CLASSES))
    for _ in range(30):
        exponentials = np.exp(rows @ theta)
        shares = exponentials / exponentials.sum(axis=1, keepdims=True)
        slope = (rows.T @ (shares - np.eye(CLASSES)[labels]) / len(rows)).ravel() + penalty @ theta.ravel()
        curvature = sum(
            np.kron(np.outer(row, row), np.diag(share) - np.outer(share, share))
            for row, share in zip(rows, shares, strict=True)
        )
        theta -= np.linalg.lstsq(curvature / len(rows) + penalty, slope, rcond=None)[0].reshape(theta.shape)
    return np.log(shares)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_optimum_is_newtons(l2):
    points, labels = blobs(60, spread=1.0)
    features, _ = standardize(points, points)
    # L-BFGS stops at partial derivatives of 1e-5; the flattest problem has curvatures of about 1e-3.
    np.testing.assert_allclose(scores(features, labels, l2), newton(features, labels, l2), atol=5e-3, rtol=0)


def test_more_features_than_images():
    """With ten copies of every column, each has a tenth of the weight, so the penalty is a tenth."""
    points, labels = blobs(30, spread=1.0)
    features, _ = standardize(points, points)
    copies = np.tile(features, 10)
    assert copies.shape[1] > len(copies)
    assert principal_axes(copies)[0].shape == (50, 5)
    np.testing.assert_allclose(scores(copies, labels, 0.1), scores(features, labels, 0.01), atol=5e-3, rtol=0)


def test_separable_classes_are_told_apart_and_noise_is_not():
    train, queries = blobs(90, spread=0.05), blobs(60, spread=0.05, seed=1)
    found = linear_accuracy(*train, *queries)
    assert (found.top1, found.top5) == (100.0, 100.0)
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(count, 5)).astype(np.float32) for count in (90, 600)]
    guessed = linear_accuracy(noise[0], train[1], noise[1], np.arange(600) % CLASSES)
    assert 100 / CLASSES - 8 < guessed.top1 < 100 / CLASSES + 8  # 8: four standard deviations of 600 guesses
    assert guessed.l2 > found.l2  # noise needs a larger penalty


def test_scale_and_offset_of_columns_do_not_matter():
    """Scores change by 1e-5; the two best of a query differ by at least 2e-3, and the losses of penalties by 0.05."""
    (train, labels), (queries, expected) = blobs(90, spread=1.0), blobs(60, spread=1.0, seed=1)
    scale, offset = np.float32([1e-3, 1, 50, 2, 1e3]), np.float32([0, 5, -100, 1, 0])
    plain = linear_accuracy(train, labels, queries, expected)
    assert 50 < plain.top1 < 100
    assert linear_accuracy(train * scale + offset, labels, queries * scale + offset, expected) == plain


def test_same_features_same_accuracy_whatever_the_random_state():
    train, queries = blobs(90, spread=1.0), blobs(60, spread=1.0, seed=1)
    np.random.seed(1)  # noqa: NPY002
    first = linear_accuracy(*train, *queries)
    np.random.seed(2)  # noqa: NPY002
    assert linear_accuracy(*train, *queries) == first


def test_constant_columns_are_passed_over():
    train, queries = blobs(90, spread=1.0), blobs(60, spread=1.0, seed=1)
    padded = [np.hstack([part, np.full((len(part), 2), 0.1, np.float32)]) for part in (train[0], queries[0])]
    assert linear_accuracy(padded[0], train[1], padded[1], queries[1]) == linear_accuracy(*train, *queries)


def test_features_that_are_not_finite_are_refused():
    train, queries = blobs(90, spread=1.0), blobs(60, spread=1.0, seed=1)
    train[0][3, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        linear_accuracy(*train, *queries)
