"""Position tables of files, fitted to the grid of the network that loads them."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from paddle import nn

from plsc_mae.errors import CheckpointError
from plsc_mae.models.pos_embed import resize_pos_embed
from plsc_mae.models.rel_pos_bias import MIN_RESIZED_SIDE, TOKEN_ENTRIES, resize_relative_positions
from plsc_mae.models.vit import Positions, VisionTransformer, fixed_table, pair
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import POSITION_TABLE
from plsc_mae.weights.dialects.base import Array
from plsc_mae.weights.dialects.encoder import RELATIVE_TABLE, relative_side
from plsc_mae.weights.dialects.grids import square_side

logger = logging.getLogger(__name__)
Grid = tuple[int, int]


class PositionFit:
    """Callback for `weights.load` that resizes position tables to the grid of an encoder.

    Learned tables are resized. A fixed table that the file has as computed for its grid gives way to the network's own;
    any other table is resized even if the network's own is fixed, since it was trained.

    Args:
        network: the network to load; its fixed tables are its own.
        encoder: the encoder in it, or the network itself.
        stored: the file. Its grid is that of its stored options, if they are this suite's; else a square or, if the
            number of patches is no square, the encoder's.
    """

    def __init__(self, network: nn.Layer, encoder: VisionTransformer, stored: Checkpoint) -> None:
        self.own = {name: table for name, table in network.named_buffers() if name.endswith(POSITION_TABLE)}
        self.path, self.grid = stored.path, encoder.grid
        self.stored_grid = _stored_grid(stored, encoder.patch_size)
        self._unknown = 0  # patches of a table whose grid is unknown

    def __call__(self, name: str, value: Array, shape: list[int]) -> Array | None:
        """Return the table `value` of the file for the network's tensor `name`; None if it cannot be resized."""
        if value.ndim != len(shape) or value.shape[-1] != shape[-1]:
            return None
        if name.endswith(POSITION_TABLE):
            return self._fit(name, value, shape[1] - math.prod(self.grid))
        old = self._relative_grid(len(value)) if name.endswith(RELATIVE_TABLE) else None
        if old is None or min(old) < MIN_RESIZED_SIDE:
            return None
        return resize_relative_positions(value.astype(np.float32), old, self.grid)

    def require_grid(self) -> None:
        """Raise CheckpointError if the grid of a table of the file was unknown; call after loading."""
        if self._unknown:
            rows, columns = self.grid
            raise CheckpointError(
                f"{self.path} has positions of {self._unknown} patches, which are no square grid; the network has "
                f"{rows} x {columns} patches; give height and width of the images of its training with --input_size H W"
            )

    def _fit(self, name: str, value: Array, prefix: int) -> Array | None:
        """Fit a table [1, `prefix` + L, D]."""
        old = self._old_grid(value, prefix)
        if old is None:
            self._unknown = value.shape[1] - prefix
            return None
        if old == self.grid:
            return value
        if name in self.own and computed_kind(value, old, class_token=prefix > 0):
            return self.own[name].numpy()
        return resize_pos_embed(value.astype(np.float32), old, self.grid)

    def _old_grid(self, table: Array, prefix: int) -> Grid | None:
        patches = table.shape[1] - prefix
        if self.stored_grid is not None and math.prod(self.stored_grid) == patches:
            return self.stored_grid
        side = square_side(patches)
        if side is None:
            return self.grid if patches == math.prod(self.grid) else None
        square = (side, side)
        if patches != math.prod(self.grid) or square == self.grid:
            return square
        if computed_kind(table, square, class_token=prefix > 0):
            return square
        logger.warning(
            "%s has positions of %d patches, which fit grids of %d x %d and of %d x %d; the second, of the input size, "
            "is assumed",
            *(self.path, patches, *square, *self.grid),
        )
        return self.grid

    def _relative_grid(self, rows: int) -> Grid | None:
        stored = self.stored_grid
        if stored is not None and (2 * stored[0] - 1) * (2 * stored[1] - 1) + TOKEN_ENTRIES == rows:
            return stored
        side = relative_side(rows)
        return None if side is None else (side, side)


def computed_kind(table: Array, grid: Grid, *, class_token: bool) -> Positions | None:
    """Return the kind of fixed table that equals `table` [1, T + L, D] within 1e-5; None if it is of neither kind."""
    kinds: tuple[Positions, ...] = ("column first", "row first")
    for kind in kinds:
        computed = fixed_table(table.shape[-1], grid, positions=kind, class_token=class_token).numpy()
        if computed.shape == table.shape and np.allclose(table, computed, atol=1e-5):
            return kind
    return None


def _stored_grid(stored: Checkpoint, patch_size: int) -> Grid | None:
    """Return the grid of the images that a checkpoint of this suite was trained on; None for other files."""
    options: Any = stored.meta.get("args")
    if not isinstance(options, dict) or "method" not in stored.meta or not options.get("input_size"):
        return None
    height, width = pair(options["input_size"])
    return height // patch_size, width // patch_size
