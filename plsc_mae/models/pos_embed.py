"""Fixed position tables and their resizing (facebookresearch/mae util/pos_embed.py; Atten4Vis/CAE; MAE-pytorch)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F

FloatArray = npt.NDArray[np.floating]


def sincos_2d(dim: int, grid: tuple[int, int], *, class_token: bool = False, row_first: bool = False) -> FloatArray:
    """Make the 2-D sin-cos table: [L, D] or, with a leading row of zeros, [1 + L, D], float64.

    MAE: the first half of a vector encodes the column and the second half the row of the patch, sines before cosines;
    the order looks like a slip in the original but released weights depend on it. CAE has the halves the other way.

    Args:
        dim: width D, a multiple of 4.
        grid: rows and columns of patches.
        class_token: whether to lead with the class token's zeros.
        row_first: whether the first half encodes the row (Atten4Vis/CAE).

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sin-cos table needs a width that is a multiple of 4, got {dim}")
    rows, columns = (np.arange(side, dtype=np.float64) for side in grid)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(rows, columns, indexing="ij"))
    first, second = (row, column) if row_first else (column, row)
    table = np.concatenate([_sincos_1d(dim // 2, first), _sincos_1d(dim // 2, second)], axis=1)
    return np.concatenate([np.zeros([1, dim]), table]) if class_token else table


def sinusoid_1d(dim: int, count: int, *, class_token: bool = False) -> FloatArray:
    """Make the table [L, D] of Vaswani et al. 2017 over the raster index (pengzhiliang/MAE-pytorch), float64.

    Sines and cosines alternate. With `class_token` a row of zeros leads.
    """
    channel = np.arange(dim)
    angles = np.arange(count)[:, None] / 10000.0 ** (2 * (channel // 2) / dim)
    table = np.where(channel % 2, np.cos(angles), np.sin(angles))
    return np.concatenate([np.zeros([1, dim]), table]) if class_token else table


def _sincos_1d(dim: int, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    omega = 10000.0 ** -(np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angles = positions[:, None] * omega[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def resize_pos_embed(table: FloatArray, old: tuple[int, int], new: tuple[int, int]) -> FloatArray:
    """Resize the patch rows of a table [1, T + L, D] to another grid; the T leading token rows are kept.

    Bicubic (a = -0.75), half-pixel centers, no antialiasing, by target size, as the original does.
    """
    if old == new:
        return table
    tokens, dim = table.shape[1] - old[0] * old[1], table.shape[2]
    grid = paddle.to_tensor(table[:, tokens:].astype("float32")).reshape([1, *old, dim]).transpose([0, 3, 1, 2])
    grid = F.interpolate(grid, size=list(new), mode="bicubic", align_corners=False)
    patches = grid.transpose([0, 2, 3, 1]).reshape([1, -1, dim]).numpy()
    return np.concatenate([table[:, :tokens], patches.astype(table.dtype)], axis=1)
