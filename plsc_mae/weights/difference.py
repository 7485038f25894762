"""Compares two tables of tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorDifference:
    """Difference of two tensors of the same shape."""

    name: str  # name of the tensor
    max_abs: float  # largest absolute difference of two values; infinite if a value is NaN in one tensor only
    # `max_abs` divided by the largest finite absolute value in either tensor; `max_abs` itself if that value is 0
    relative: float
    differing: int  # number of values that differ
    size: int  # number of values


@dataclass(frozen=True)
class Difference:
    """Result of comparing two tables of tensors."""

    only_a: list[str]  # names that only the first table has
    only_b: list[str]  # names that only the second table has
    # {name: (shape in the first table, shape in the second)} of the tensors whose shapes differ
    other_shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    identical: list[str]  # names of tensors with the same type and the same bits
    # differences of the other tensors of equal shapes, the largest first. For floating-point tensors, a difference of 0
    # means that only types, signs of zeros or bits of NaNs differ.
    compared: list[TensorDifference]

    def within(self, tolerance: float) -> bool:
        """Return True if both tables have the same names and shapes, and values differ by at most `tolerance`."""
        same_tensors = not (self.only_a or self.only_b or self.other_shapes)
        return same_tensors and all(each.max_abs <= tolerance for each in self.compared)


def compare(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> Difference:
    """Compare two tables of tensors, each of the form {name: array}."""
    shared = [name for name in a if name in b]
    same_shape = [name for name in shared if a[name].shape == b[name].shape]
    identical = [name for name in same_shape if _is_identical(a[name], b[name])]
    unchanged = set(identical)
    compared = [_compare_tensors(name, a[name], b[name]) for name in same_shape if name not in unchanged]
    return Difference(
        only_a=sorted(set(a) - set(b)),
        only_b=sorted(set(b) - set(a)),
        other_shapes={name: (a[name].shape, b[name].shape) for name in shared if a[name].shape != b[name].shape},
        identical=identical,
        compared=sorted(compared, key=lambda each: -each.max_abs),
    )


def _is_identical(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype != b.dtype:
        return False
    bits = np.dtype(f"V{a.dtype.itemsize}")
    return bool(np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)))


def _compare_tensors(name: str, a: NDArray[Any], b: NDArray[Any]) -> TensorDifference:
    """Return the difference of two tensors in double precision; values that are NaN in both count as equal."""
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    differs = (a != b) & ~((a != a) & (b != b))
    x, y = a[differs].astype(wide), b[differs].astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(x - y)
    gaps[np.isnan(gaps)] = np.inf
    max_abs = float(gaps.max(initial=0.0))
    values = np.concatenate([np.abs(part.astype(wide)).reshape(-1) for part in (a, b)])
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    relative = max_abs / largest if largest else max_abs
    return TensorDifference(name, max_abs, relative, int(differs.sum()), a.size)
