"""Differences of tables of tensors: counted and measured exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plsc_mae.weights.difference import TensorDifference, compare

pytestmark = [pytest.mark.compat, pytest.mark.once]


def one(a, b) -> TensorDifference:
    """Return the difference of two tensors that are not identical."""
    found = compare({"x": np.asarray(a)}, {"x": np.asarray(b)})
    assert found.identical == []
    (difference,) = found.compared
    return difference


def test_what_is_only_in_one_and_what_has_another_shape():
    a = {"same": np.arange(3), "first": np.zeros(1), "shape": np.zeros((2, 3)), "b": np.zeros(1)}
    b = {"same": np.arange(3), "second": np.zeros(1), "shape": np.zeros((3, 2)), "b": np.ones(1)}
    found = compare(a, b)
    assert (found.only_a, found.only_b, found.identical) == (["first"], ["second"], ["same"])
    assert found.other_shapes == {"shape": ((2, 3), (3, 2))}
    assert [each.name for each in found.compared] == ["b"]
    assert not found.within(10.0)


def test_the_largest_difference_comes_first_and_decides():
    a = {"small": np.array([1.0, 2.0], np.float32), "large": np.array([-4.0, 8.0, 0.0], np.float32)}
    b = {"small": np.array([1.0, 2.25], np.float32), "large": np.array([-5.0, 8.5, 0.0], np.float32)}
    found = compare(a, b)
    assert found.compared == [
        TensorDifference("large", 1.0, 1.0 / 8.5, 2, 3),
        TensorDifference("small", 0.25, 0.25 / 2.25, 1, 2),
    ]
    assert found.within(1.0)
    assert not found.within(0.99)


def test_identical_is_by_bits():
    values = np.array([np.nan, -0.0, np.inf, 1.0], np.float32)
    assert compare({"x": values}, {"x": values[::1].copy()}).identical == ["x"]
    strided = np.repeat(values, 2)[::2]
    assert compare({"x": values}, {"x": strided}).identical == ["x"]
    scalar = np.asarray(3)
    assert compare({"x": scalar}, {"x": scalar.copy()}).identical == ["x"]
    empty = np.zeros((0, 3))
    assert compare({"x": empty}, {"x": empty.copy()}).identical == ["x"]


def test_equal_values_of_other_bits_do_not_differ():
    assert one(np.float32([0.0, 1.5]), np.float32([-0.0, 1.5])) == TensorDifference("x", 0.0, 0.0, 0, 2)
    assert one(np.float16([1.5]), np.float32([1.5])).max_abs == 0.0
    assert one(np.int64([3]), np.int32([3])).differing == 0
    assert one(np.zeros(0, np.int8), np.zeros(0, np.int16)) == TensorDifference("x", 0.0, 0.0, 0, 0)
    other_nan = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert one(np.float32([np.nan]), other_nan).differing == 0


@pytest.mark.parametrize(
    ("a", "b", "gap"),
    [
        ([1.0, np.nan], [1.0, 2.0], math.inf),
        ([np.inf], [-np.inf], math.inf),
        ([np.inf], [1.0], math.inf),
        ([np.inf, 3.0], [np.inf, 2.5], 0.5),
        ([True, False], [True, True], 1.0),
        ([0], [255], 255.0),
        ([1 + 1j], [1 - 1j], 2.0),
    ],
)
def test_gaps(a, b, gap):
    found = one(a, b)
    assert found.max_abs == gap
    assert found.differing == 1


def test_unsigned_values_do_not_wrap():
    assert one(np.uint8([0]), np.uint8([255])).max_abs == 255.0


def test_relative_is_to_the_largest_number():
    assert one([0.0, 0.0], [0.0, 0.5]).relative == 1.0
    assert one([np.inf, 4.0], [np.inf, 2.0]).relative == 0.5
