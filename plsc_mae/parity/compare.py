"""Differences between two computations of the same tensors, judged by a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import UserError

Arrays = Mapping[str, npt.NDArray[Any]]


class ParityError(UserError):
    """Error of a network that differs from a reference by more than the tolerance."""

    exit_code = 1


@dataclass(frozen=True)
class Row:
    """Difference between two computations of one tensor."""

    name: str  # name of the layer or parameter
    largest: float  # largest absolute difference of an element, unless the section's note states another measure
    mean: float  # mean absolute difference
    scale: float  # divisor of `largest`, usually the largest absolute value of the reference's tensor
    tolerance: float  # upper limit of `largest` / `scale`

    @property
    def relative(self) -> float:
        """Largest difference divided by the scale, or undivided if the scale is 0."""
        return self.largest / self.scale if self.scale else self.largest

    @property
    def ok(self) -> bool:
        """True if the relative difference is within tolerance; False for NaN."""
        return bool(self.relative <= self.tolerance)

    def __str__(self) -> str:
        return f"{self.name} differs by {self.relative:.1e}, tolerance {self.tolerance:.0e}"


@dataclass(frozen=True)
class Section:
    """Rows of one kind: layers, gradients or updates."""

    title: str  # heading in the report
    note: str  # explanation of the rows
    rows: list[Row]  # differences, one per tensor
    # True if the rows are in the order of computation; the first row beyond tolerance
    # then shows the layer in which the network goes wrong
    in_order: bool = False

    @property
    def worst(self) -> Row:
        """Row with the largest ratio of relative difference to tolerance; NaN counts as infinite."""
        return max(self.rows, key=lambda row: np.inf if np.isnan(row.relative) else row.relative / row.tolerance)


@dataclass(frozen=True)
class Comparison:
    """Comparison of one of our networks with one reference."""

    network: str  # name of the network
    reference: str  # name of the oracle or of the original implementation
    sections: list[Section] = field(default_factory=list)  # compared tensors; empty if nothing was compared
    versions: str = ""  # versions of the reference's software
    # reason why nothing was compared, or deviation of the compared loss from that of training; else empty
    remark: str = ""

    def failures(self) -> list[str]:
        """Return one sentence for each section with rows beyond tolerance; it names the first such row."""
        first = ((section, next((row for row in section.rows if not row.ok), None)) for section in self.sections)
        return [f"{self.network} against {self.reference}, {s.title}: {row}" for s, row in first if row is not None]


def difference(
    name: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], tolerance: float, scale: float | None = None
) -> Row:
    """Return the row of two versions of a tensor; the difference is infinite if their shapes differ.

    Args:
        name: name of the layer or parameter.
        ours: values of our network.
        theirs: values of the reference.
        tolerance: upper limit of the relative difference.
        scale: divisor of the largest difference; the largest absolute value of `theirs` if None.
    """
    if ours.shape != theirs.shape:
        return Row(f"{name} {list(ours.shape)} instead of {list(theirs.shape)}", np.inf, np.inf, 1.0, tolerance)
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    if scale is None:
        scale = float(np.abs(theirs).max())
    return Row(name, float(error.max()), float(error.mean()), scale, tolerance)


def differences(ours: Arrays, theirs: Arrays, tolerance: float) -> list[Row]:
    """Return a row for every tensor in `theirs`, in that order; other tensors of `ours` are ignored.

    Raises:
        KeyError: a tensor is missing from `ours`.
    """
    return [difference(name, ours[name], value, tolerance) for name, value in theirs.items()]
