"""Choices of few labels: fixed by the seed, nested, per class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plsc_mae.data.cifar import CifarImages
from plsc_mae.data.few_labels import fraction, fraction_of_all, shots
from plsc_mae.errors import DataError

IMAGES = CifarImages(
    pixels=np.zeros((90, 1, 1, 3), np.uint8),
    labels=np.repeat(np.arange(3), [10, 30, 50]),
    classes=("ant", "bee", "cat"),
    source="here",
)


def test_shots_are_per_class_nested_and_fixed():
    found = {count: shots(IMAGES, count, 0) for count in (1, 2, 5, 10)}
    for count, rows in found.items():
        assert np.bincount(IMAGES.labels[rows]).tolist() == [count] * 3
        assert (rows == shots(IMAGES, count, 0)).all()
        assert set(rows) <= set(found[10])
    assert set(shots(IMAGES, 5, 1)) != set(found[5])
    with pytest.raises(DataError, match="class ant has 10 images"):
        shots(IMAGES, 11, 0)


def test_a_share_of_every_class():
    assert np.bincount(IMAGES.labels[fraction(IMAGES, 0.1, 0)]).tolist() == [1, 3, 5]
    assert np.bincount(IMAGES.labels[fraction(IMAGES, 0.01, 0)]).tolist() == [1, 1, 1]
    assert (fraction(IMAGES, 1.0, 0) == np.arange(90)).all()
    assert set(fraction(IMAGES, 0.1, 0)) <= set(fraction(IMAGES, 0.5, 0))
    assert len(fraction_of_all(90, 0.1, 0)) == 9
    assert set(fraction_of_all(90, 0.1, 0)) <= set(fraction_of_all(90, 0.5, 0))


def test_a_choice_does_not_depend_on_other_classes():
    """Classes in another order, and one of them alone, have the same chosen images."""
    order = np.array([2, 0, 1])
    turned = dataclasses.replace(IMAGES, labels=order[IMAGES.labels], classes=("bee", "cat", "ant"))
    assert (shots(turned, 5, 3) == shots(IMAGES, 5, 3)).all()
    alone = dataclasses.replace(IMAGES, labels=np.zeros(10, np.int64), classes=("ant",))
    assert (shots(alone, 5, 3) == shots(IMAGES, 5, 3)[:5]).all()
