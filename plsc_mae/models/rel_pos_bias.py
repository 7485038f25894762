"""Relative position bias of attention, with a class token (BEiT; Atten4Vis/CAE models/modeling_finetune.py)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor, nn

TOKEN_ENTRIES = 3  # class token to patch, patch to class token, class token to itself


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

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
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
