"""Relative position bias of attention, with a class token (BEiT; Atten4Vis/CAE models/modeling_finetune.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor, nn

from plsc_mae.models.deterministic import table_rows
from plsc_mae.models.tensor_split import HEADS, TensorSplit

TOKEN_ENTRIES = 3  # class token to patch, patch to class token, class token to itself
MIN_RESIZED_SIDE = 3  # patches; fewer have too few differences for a cubic spline
FloatArray = npt.NDArray[np.floating]


def relative_position_index(grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return the row of the bias table for every (query, key), int64 [1 + L, 1 + L], the class token first.

    Pairs of patches with the same difference in rows and columns share a row; pairs with the class token use the last
    three rows of the table.
    """
    rows, columns = grid
    entries = (2 * rows - 1) * (2 * columns - 1)
    row, column = (axis.reshape(-1) for axis in np.indices(grid))
    index = np.empty([1 + rows * columns] * 2, np.int64)
    index[1:, 1:] = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
    index[0, :], index[:, 0], index[0, 0] = entries, entries + 1, entries + 2
    return index


class RelativePositionBias(nn.Layer):
    """A learned bias for each head and relative position, initially zero."""

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
        """Return the bias [H, 1 + L, 1 + L] to add to the logits of attention."""
        return table_rows(self.relative_position_bias_table, self.index).transpose([2, 0, 1])


def resize_relative_positions(table: FloatArray, old: tuple[int, int], new: tuple[int, int]) -> FloatArray:
    """Resample a bias table [(2h-1)(2w-1) + 3, H] for another grid; the three rows of the class token are kept.

    The method is that of BEiT (run_class_finetuning.py), which calls SciPy's `interp2d(kind="cubic")`. On each axis
    whose length changes, the old table's values are placed at coordinates of the new table: 0 stays at 0, and the gaps
    between neighbors grow geometrically outward. A cubic spline through the values, one axis after the other, is
    evaluated at the new grid's integer differences; beyond the outermost coordinate the value stays constant.

    Args:
        table: bias table of the old grid.
        old: rows and columns of patches of the old grid; at least 3 where the number changes.
        new: rows and columns of patches of the new grid.
    """
    if old == new:
        return table
    height, width = (2 * side - 1 for side in old)
    values = table[: height * width].astype(np.float64).reshape(height, width, -1)
    for axis in (0, 1):
        values = _resample(values, axis, old[axis], new[axis])
    return np.concatenate([values.reshape(-1, table.shape[1]).astype(table.dtype), table[height * width :]])


def _resample(values: npt.NDArray[np.float64], axis: int, old: int, new: int) -> npt.NDArray[np.float64]:
    """Resample one axis of a table of relative positions, from 2*`old` - 1 values (`old` patches) to 2*`new` - 1."""
    from scipy.interpolate import make_interp_spline  # takes 0.6 s, so import it only for a change of the grid

    if old == new:
        return values
    places = _places(old, new)
    spline = make_interp_spline(places, values, k=3, axis=axis)  # not-a-knot ends by default, as in FITPACK
    return spline(np.arange(1.0 - new, new).clip(places[0], places[-1]))


def _places(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the ascending coordinates, in patches of the new grid, of the old table's 2*`old` - 1 values."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # BEiT's bounds and tolerance for the ratio of neighboring distances
        ratio = (low + high) / 2
        low, high = (low, ratio) if np.sum(ratio ** np.arange(old - 1)) > new - 1 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(old - 1))
    return np.concatenate([-distances[::-1], [0.0], distances])
