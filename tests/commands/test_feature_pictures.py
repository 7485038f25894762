"""Captions of pictures of neighbors."""

from __future__ import annotations

import pytest

from plsc_mae.commands.feature_pictures import distinct_digits


@pytest.mark.parametrize(
    ("rows", "digits"),
    [
        ([[0.9, 0.8]], 3),
        ([[0.99981, 0.99979]], 5),
        ([[0.9, 0.8], [0.9996, 0.9993]], 4),
        ([[0.9996]], 4),  # not 1.000
        ([[0.5, 0.5], [1.0, 0.25]], 3),
        ([[1.0000001, 1.0]], 3),  # rounding of float32
        ([[0.123456, 0.1234562]], 3),
    ],
)
def test_different_cosines_look_different(rows, digits):
    assert distinct_digits(rows) == digits
