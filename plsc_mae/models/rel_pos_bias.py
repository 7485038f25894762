"""Relative position bias of attention, with a class token (BEiT; Atten4Vis/CAE models/modeling_finetune.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor, nn

from plsc_mae.models.tensor_split import HEADS, TensorSplit

TOKEN_ENTRIES = 3  # class token to patch, patch to class token, class token to itself
MIN_RESIZED_SIDE = 3  # patches; fewer have too few differences for a cubic spline
FloatArray = npt.NDArray[np.floating]


def relative_position_index(grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Row of the table for every pair of tokens, [1 + L, 1 + L]; the class token comes first.

    Patches look up their difference in rows and columns; pairs with the class token have the table's last three rows.
    """
    rows, columns = grid
    entries = (2 * rows - 1) * (2 * columns - 1)
    row, column = (axis.reshape(-1) for axis in np.indices(grid))
    index = np.empty([1 + rows * columns] * 2, np.int64)
    index[1:, 1:] = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
    index[0, :], index[:, 0], index[0, 0] = entries, entries + 1, entries + 2
    return index


class RelativePositionBias(nn.Layer):
    """A learned bias for each head and difference of places; it starts at zero."""

    tensor_split = TensorSplit(HEADS, {"relative_position_bias_table": 1})

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        entries = (2 * grid[0] - 1) * (2 * grid[1] - 1) + TOKEN_ENTRIES
        self.relative_position_bias_table = self.create_parameter(
            [entries, num_heads], default_initializer=nn.initializer.Constant(0.0)
        )
        index = paddle.to_tensor(relative_position_index(grid))
        self.register_buffer("index", index, persistable=False)

    def forward(self) -> Tensor:
        """Bias [H, 1 + L, 1 + L], to be added to the logits of attention."""
        rows = paddle.gather(self.relative_position_bias_table, self.index.flatten())
        return rows.reshape([*self.index.shape, -1]).transpose([2, 0, 1])


def resize_relative_positions(table: FloatArray, old: tuple[int, int], new: tuple[int, int]) -> FloatArray:
    """Resample a table [(2h-1)(2w-1) + 3, H] for another grid; the class token's rows are kept.

    After BEiT (run_class_finetuning.py): differences of the old grid are spread over the new one in a geometric
    progression, dense near 0, and a bicubic spline is read at whole differences. The spline has no knot at the second
    place from either end ("not-a-knot"), and beyond the last place it stays constant, as FITPACK's.

    Args:
        table: of the old grid.
        old: rows and columns of patches, at least 3 each.
        new: the same of the new grid.
    """
    if old == new:
        return table
    height, width = (2 * side - 1 for side in old)
    entries = height * width
    values = table[:entries].astype(np.float64).reshape(height, width, -1)
    rows, columns = (_resampling(*sides) for sides in zip(old, new, strict=True))
    resized = np.einsum("ai,ijh,bj->abh", rows, values, columns).reshape(-1, table.shape[1])
    return np.concatenate([resized.astype(table.dtype), table[entries:]])


def _resampling(old: int, new: int) -> npt.NDArray[np.float64]:
    """Matrix [2*new - 1, 2*old - 1] from values at the old side's differences to values at the new side's."""
    wanted = np.arange(1.0 - new, new)
    if old == new:
        return np.eye(len(wanted))
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # BEiT's bounds and tolerance for the ratio of neighboring distances
        ratio = (low + high) / 2
        low, high = (low, ratio) if np.sum(ratio ** np.arange(old - 1)) > new - 1 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(old - 1))
    places = np.concatenate([-distances[::-1], [0.0], distances])
    knots = np.concatenate([places[[0] * 4], places[2:-2], places[[-1] * 4]])
    return _cubic_basis(wanted.clip(places[0], places[-1]), knots) @ np.linalg.inv(_cubic_basis(places, knots))


def _cubic_basis(x: npt.NDArray[np.float64], knots: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cubic B-splines [N, K - 4] over K knots at N places (Cox and de Boor's recursion)."""
    x = x[:, None]
    basis = ((knots[:-1] <= x) & (x < knots[1:])).astype(np.float64)
    basis[x[:, 0] == knots[-1], -4] = 1.0  # the last place belongs to the last interval that is not empty
    for degree in (1, 2, 3):
        span = knots[degree:] - knots[:-degree]
        share = np.divide(x - knots[:-degree], span, out=np.zeros((len(x), len(span))), where=span > 0)
        basis = share[:, :-1] * basis[:, :-1] + np.where(span[1:] > 0, 1 - share[:, 1:], 0.0) * basis[:, 1:]
    return basis
