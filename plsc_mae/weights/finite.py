"""Rejects weights that are not floating-point numbers, and values that are NaN, infinite or too large for float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc_mae.errors import CheckpointError
from plsc_mae.wording import counted

LARGEST = float(np.finfo(np.float32).max)
MAX_NAMES = 3  # names of tensors in a message


def require_finite(
    tensors: Mapping[str, NDArray[Any]], where: str, remedy: str = "take an earlier checkpoint of the run"
) -> None:
    """Check that all values are finite in float32, the type of the networks' weights.

    To save memory, only complex tensors and tensors with values that are not finite are copied, one at a time.

    Raises:
        CheckpointError: a value is NaN, infinite, or beyond the range of float32.
    """
    counts = {name: count_not_finite(value) for name, value in tensors.items() if not _is_finite(value)}
    if not counts:
        return
    names = ", ".join(list(counts)[:MAX_NAMES])
    more = f" and {len(counts) - MAX_NAMES} more" if len(counts) > MAX_NAMES else ""
    raise CheckpointError(
        f"{where} has values that are NaN, infinite or beyond float32: {sum(counts.values())} in {len(counts)} of "
        f"{counted(len(tensors), 'tensor')} ({names}{more}); training diverged or the file is damaged; {remedy}"
    )


def require_floats(tensors: Mapping[str, NDArray[Any]], where: str) -> None:
    """Check that all tensors are of a floating-point type.

    Integers are quantized weights, which are wrong without their scales; a cast of complex numbers drops their
    imaginary parts.

    Raises:
        CheckpointError: a tensor has another type, such as integers, booleans or complex numbers.
    """
    others = {name: value.dtype for name, value in tensors.items() if value.dtype.kind != "f"}
    if not others:
        return
    name, kind = next(iter(others.items()))
    raise CheckpointError(
        f"{where} has weights that are not floating-point numbers ({len(others)}, the first {name} of type {kind}); if "
        "they are quantized, save the network before it is quantized, in float32 or float16"
    )


def count_not_finite(value: NDArray[Any]) -> int:
    """Return the number of values that are NaN, infinite or beyond the range of float32; 0 for integers and bools."""
    if value.dtype.kind not in "fc":
        return 0
    with np.errstate(over="ignore", invalid="ignore"):
        return int(value.size - np.count_nonzero(np.abs(value) <= _largest(value)))


def _is_finite(value: NDArray[Any]) -> bool:
    """Return True if all values are finite in float32.

    Real tensors are judged by their minimum and maximum, which need no copy and are NaN if any value is NaN.
    """
    if value.dtype.kind == "c":
        return count_not_finite(value) == 0
    if value.dtype.kind != "f" or value.size == 0:
        return True
    with np.errstate(invalid="ignore"):
        return bool(value.min() >= -_largest(value) and value.max() <= _largest(value))


def _largest(value: NDArray[Any]) -> float:
    """Return the largest value that is finite both in the type of `value` and in float32.

    NumPy compares in the type of `value`, which cannot always represent float32's largest value.
    """
    return min(LARGEST, float(np.finfo(value.dtype).max))
