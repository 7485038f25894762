"""Accuracy with few labels: choices, classifier and interval against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from plsc_mae.analysis.few_shot import Budget, Estimate, few_shot_accuracies
from plsc_mae.analysis.labeled import LabeledFeatures
from plsc_mae.analysis.linear import linear_accuracy


def features(seed: int, per_class: int) -> LabeledFeatures:
    """Features of three classes around random centers."""
    centers = np.random.default_rng(0).standard_normal((3, 8))
    labels = np.repeat(np.arange(3), per_class)
    noise = np.random.default_rng(seed).standard_normal((len(labels), 8))
    return LabeledFeatures((centers[labels] + noise).astype(np.float32), labels)


def test_the_classifier_against_scikit_learn():
    """The optimum for the chosen penalty is that of scikit-learn's logistic regression with C = 1 / (n * penalty)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    bank, queries = features(1, 20), features(2, 40)
    rows = np.arange(0, 60, 2)
    numbers = np.arange(60)
    (found,) = few_shot_accuracies(bank, numbers, queries, {Budget(10): [rows]})[Budget(10)]
    chosen = linear_accuracy(bank.features[rows], bank.labels[rows], queries.features, queries.labels)
    assert found == chosen.top1
    scaler = preprocessing.StandardScaler().fit(bank.features[rows])
    model = linear_model.LogisticRegression(C=1 / (len(rows) * chosen.l2), max_iter=1000, tol=1e-8)
    model.fit(scaler.transform(bank.features[rows]), bank.labels[rows])
    assert found == pytest.approx(100 * model.score(scaler.transform(queries.features), queries.labels))


def test_unreadable_images_leave_gaps():
    bank, queries = features(1, 20), features(2, 40)
    numbers = np.flatnonzero(np.arange(60) % 7 != 3)  # the others could not be read
    part = LabeledFeatures(bank.features[numbers], bank.labels[numbers])
    rows = np.arange(0, 60, 2)
    found = few_shot_accuracies(part, numbers, queries, {Budget(10): [rows]})
    read = np.intersect1d(rows, numbers)
    expected = linear_accuracy(bank.features[read], bank.labels[read], queries.features, queries.labels)
    assert found == {Budget(10): [expected.top1]}


def test_the_interval_is_students():
    values = [50.0, 52.0, 47.0, 55.0]
    mean, margin = Estimate.of(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - margin, mean + margin) == pytest.approx((low, high))
    assert str(Estimate.of([50.0])) == "50.0"
    assert str(Estimate.of([50.0, 50.0])) == "50.0 ± 0.0"
