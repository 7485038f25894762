"""Differences of two computations of the same network, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import UserError

Arrays = Mapping[str, npt.NDArray[Any]]


class ParityError(UserError):
    """A difference beyond tolerance."""

    exit_code = 1


@dataclass(frozen=True)
class Row:
    """One tensor, computed twice.

    Attributes:
        name: of the layer or parameter.
        largest: largest absolute difference of two elements.
        mean: mean absolute difference.
        scale: divides `largest`; by default the largest absolute value of the tensor.
        tolerance: upper limit of `largest` / `scale`.
    """

    name: str
    largest: float
    mean: float
    scale: float
    tolerance: float

    @property
    def relative(self) -> float:
        """The difference as a share of the tensor's scale."""
        return self.largest / self.scale if self.scale else self.largest

    @property
    def ok(self) -> bool:
        """True within tolerance; NaN never is."""
        return bool(self.relative <= self.tolerance)

    def __str__(self) -> str:
        return f"{self.name} differs by {self.relative:.1e}, tolerance {self.tolerance:.0e}"


@dataclass(frozen=True)
class Section:
    """Rows of one kind.

    Attributes:
        title: the compared quantity.
        note: explanation of the rows.
        rows: one per tensor.
        in_order: whether they follow the computation, so that the first row beyond tolerance shows the faulty layer.
    """

    title: str
    note: str
    rows: list[Row]
    in_order: bool = False

    @property
    def worst(self) -> Row:
        """The row nearest to its tolerance, or farthest beyond it."""
        return max(self.rows, key=lambda row: np.inf if np.isnan(row.relative) else row.relative / row.tolerance)


@dataclass(frozen=True)
class Comparison:
    """A network of ours against one reference.

    Attributes:
        network: its name.
        reference: name of the reference.
        sections: the compared quantities; empty with a remark.
        versions: versions of the reference's code.
        remark: the reason for no comparison.
    """

    network: str
    reference: str
    sections: list[Section] = field(default_factory=list)
    versions: str = ""
    remark: str = ""

    def failures(self) -> list[str]:
        """Return a sentence for each section beyond tolerance, with its first such row."""
        first = ((section, next((row for row in section.rows if not row.ok), None)) for section in self.sections)
        return [f"{self.network} against {self.reference}, {s.title}: {row}" for s, row in first if row is not None]


def difference(
    name: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], tolerance: float, scale: float | None = None
) -> Row:
    """Measure one tensor; another shape counts as an infinite difference.

    Args:
        name: see `Row`.
        ours: our tensor.
        theirs: the reference's.
        tolerance: see `Row`.
        scale: see `Row`; the largest absolute value of `theirs` when None.
    """
    if ours.shape != theirs.shape:
        return Row(f"{name} {list(ours.shape)} instead of {list(theirs.shape)}", np.inf, np.inf, 1.0, tolerance)
    gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    reach = float(np.abs(theirs).max()) if scale is None else scale
    return Row(name, float(gap.max()), float(gap.mean()), reach, tolerance)


def differences(ours: Arrays, theirs: Arrays, tolerance: float) -> list[Row]:
    """Measure the tensors of `theirs`, in their order.

    Raises:
        KeyError: one of them was not computed by us.
    """
    return [difference(name, ours[name], value, tolerance) for name, value in theirs.items()]
