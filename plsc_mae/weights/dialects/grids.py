"""Grids of patches, judged by the number of rows of a position table."""

from __future__ import annotations

import math


def square_side(count: int) -> int | None:
    """Return the side of a square of `count` patches; None if `count` is not the square of a positive number."""
    side = math.isqrt(max(count, 0))
    return side if side and side * side == count else None


def prefix_positions(rows: int, class_tokens: int, register_tokens: int, patches: int | None = None) -> int | None:
    """Return the number of rows of a position table that belong to no patch.

    In facebookresearch/mae and DINOv2 only the class token has such a row. timm's tables may also have none, or one for
    every token before the patches. The numbers are tried in this order. The remaining rows must be those of `patches`
    patches or, if that is None, of a square grid.

    Returns:
        The number, or None if no number fits.
    """
    for prefix in dict.fromkeys((class_tokens, 0, class_tokens + register_tokens)):
        if (rows - prefix == patches) if patches is not None else (square_side(rows - prefix) is not None):
            return prefix
    return None
