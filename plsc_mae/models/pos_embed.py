"""Fixed position tables, and resizing (facebookresearch/mae util/pos_embed.py; Atten4Vis/CAE; MAE-pytorch)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F

FloatArray = npt.NDArray[np.floating]


def sincos_2d(dim: int, grid: tuple[int, int], *, class_token: bool = False, row_first: bool = False) -> FloatArray:
    """Compute the 2-D sin-cos position table, float64 [L, D], or [1 + L, D] with a class token.

    In MAE the first half of a vector encodes the column of the patch and the second half the row, sines before cosines;
    released weights depend on this order. In CAE and MAE-priv the halves are swapped, and on a grid of h x w patches
    with h != w entry k encodes (k // h, k % h) instead of row and column, because both originals list the coordinates
    with `meshgrid(w, h)`. On square grids that is (row, column).

    Args:
        dim: width D, a multiple of 4.
        grid: rows and columns of patches.
        class_token: whether the table starts with a row of zeros for the class token.
        row_first: whether the first half encodes the row (Atten4Vis/CAE, BUPT-PRIV/MAE-priv mae/utils.py).

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sin-cos table needs a width that is a multiple of 4, got {dim}")
    index = np.arange(grid[0] * grid[1])
    first, second = np.divmod(index, grid[0]) if row_first else np.divmod(index, grid[1])[::-1]
    table = np.concatenate([_sincos_1d(dim // 2, first), _sincos_1d(dim // 2, second)], axis=1)
    return np.concatenate([np.zeros([1, dim]), table]) if class_token else table


def sinusoid_1d(dim: int, count: int, *, class_token: bool = False) -> FloatArray:
    """Compute the position table of Vaswani et al. 2017 over the raster index of L = `count` patches (MAE-pytorch).

    Returns float64 [L, D] in which sines and cosines alternate; with `class_token` [1 + L, D], the first row zero.
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
    """Resize the patch rows of a position table [1, T + L, D] from grid `old` to `new`, each (rows, columns).

    The T leading rows of other tokens are kept. As in the original, the interpolation is bicubic (a = -0.75) with
    half-pixel centers and without antialiasing; its scale follows from the target size.
    """
    if old == new:
        return table
    tokens, dim = table.shape[1] - old[0] * old[1], table.shape[2]
    grid = paddle.to_tensor(table[:, tokens:].astype("float32")).reshape([1, *old, dim]).transpose([0, 3, 1, 2])
    grid = F.interpolate(grid, size=list(new), mode="bicubic", align_corners=False)
    patches = grid.transpose([0, 2, 3, 1]).reshape([1, -1, dim]).numpy()
    return np.concatenate([table[:, :tokens], patches.astype(table.dtype)], axis=1)
