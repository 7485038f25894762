"""Position tables of files, fitted to the grid of the network that loads them."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from paddle import nn

from plsc_mae.errors import CheckpointError, remedies
from plsc_mae.loading.channels import PATCH_KERNEL, convert_kernel, convert_predictions
from plsc_mae.models.pos_embed import resize_pos_embed
from plsc_mae.models.rel_pos_bias import MIN_RESIZED_SIDE, TOKEN_ENTRIES, resize_relative_positions
from plsc_mae.models.vit import Positions, VisionTransformer, fixed_table, pair
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import POSITION_TABLE
from plsc_mae.weights.dialects.base import Array
from plsc_mae.weights.dialects.encoder import RELATIVE_TABLE, relative_side
from plsc_mae.weights.dialects.grids import square_side
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)
Grid = tuple[int, int]


def size_remedy() -> str:
    """Return the remedy for positions of an unknown grid, as the end of a message."""
    return (
        remedies("give height and width of the images of its training with --input_size H W")
        or "the command has no option for the size of its images"
    )


class PositionFit:
    """Callback for `weights.load` that fits position tables to a network's grid, and other layers to its channels.

    A learned table is resized. If the network's table is fixed and the file's table has computed values for another
    grid, the network keeps its table. A file's table with other values was trained, so it is resized for such a network
    too.

    Args:
        network: the network to load; its buffers hold the fixed tables.
        encoder: the encoder of `network`, or `network` itself.
        stored: the file. The grid of its position table is the first of these that has the table's number of patches:
            (1) the grid of the options that plsc_mae stored, (2) the encoder's grid if it is square or the table was
            computed for it, (3) another grid for which the table was computed, (4) the encoder's grid, (5) a square.
        silent: True to log no conversion of channels, for a network that is loaded again.
    """

    def __init__(
        self, network: nn.Layer, encoder: VisionTransformer, stored: Checkpoint, *, silent: bool = False
    ) -> None:
        self.silent = silent
        self.own = {name: table for name, table in network.named_buffers() if name.endswith(POSITION_TABLE)}
        self.path, self.grid = stored.path, encoder.grid
        self.stored_grid = _stored_grid(stored, encoder.patch_size)
        self._unknown = 0  # patches of a table whose grid is unknown
        layer = getattr(network, "pixel_layer", "")  # of networks that predict pixels
        self.predictions = {f"{layer}.weight", f"{layer}.bias"} if layer else set()
        self.patch_area, self.channels_first = encoder.patch_size**2, getattr(network, "channels_first", False)

    def __call__(self, name: str, value: Array, shape: list[int]) -> Array | None:
        """Convert the file's `value` to `shape` for the network's tensor `name`; return None if that is impossible."""
        if name.endswith(PATCH_KERNEL) and value.ndim == len(shape) and value[:, 0].shape == (shape[0], *shape[2:]):
            self._log_conversion(
                "the patch embedding", value.shape[1], shape[1], f"the sum of the old kernels, divided by {shape[1]}"
            )
            return convert_kernel(value, shape[1])
        if name in self.predictions and not value.shape[-1] % self.patch_area and list(value.shape[:-1]) == shape[:-1]:
            channels = value.shape[-1] // self.patch_area, shape[-1] // self.patch_area
            if name.endswith(".weight"):  # the bias follows
                layer = name.removesuffix(".weight")
                self._log_conversion(f"{layer}, which predicts pixels,", *channels, "the mean of the old predictions")
            return convert_predictions(value, channels, channels_first=self.channels_first)
        if value.ndim != len(shape) or value.shape[-1] != shape[-1]:
            return None
        if name.endswith(POSITION_TABLE):
            return self._fit(name, value, shape[1] - math.prod(self.grid))
        old = self._relative_grid(len(value)) if name.endswith(RELATIVE_TABLE) else None
        if old is None or min(old) < MIN_RESIZED_SIDE:
            return None
        return resize_relative_positions(value.astype(np.float32), old, self.grid)

    def _log_conversion(self, layer: str, old: int, new: int, rule: str) -> None:
        if not self.silent:
            logger.info("converted %s from %d to %s: each one has %s", layer, old, counted(new, "channel"), rule)

    def require_grid(self) -> None:
        """Raise CheckpointError if the grid of a table of the file was unknown; call after loading."""
        if self._unknown:
            rows, columns = self.grid
            raise CheckpointError(
                f"{self.path} has positions of {self._unknown} patches, which form no square grid; the network has "
                f"{rows} x {columns} patches; {size_remedy()}"
            )

    def _fit(self, name: str, value: Array, prefix: int) -> Array | None:
        """Fit a table [1, `prefix` + L, D] to the encoder's grid; return None if the table's grid is unknown."""
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
        square = None if side is None else (side, side)
        fits = patches == math.prod(self.grid)
        if fits and (self.grid == square or computed_kind(table, self.grid, class_token=prefix > 0)):
            return self.grid
        if computed := computed_grid(table, prefix):
            return computed
        if square is None or not fits:
            return self.grid if fits else square
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
    """Return the kind of fixed table that equals `table` [1, T + L, D] within 1e-5; None if neither kind does.

    T is 1, the row of the class token, or 0 if `class_token` is False.
    """
    kinds: tuple[Positions, ...] = ("column first", "row first")
    for kind in kinds:
        computed = fixed_table(table.shape[-1], grid, positions=kind, class_token=class_token).numpy()
        if computed.shape == table.shape and np.allclose(table, computed, atol=1e-5):
            return kind
    return None


def computed_grid(table: Array, prefix: int) -> Grid | None:
    """Return the grid of patches whose computed table equals `table` [1, T + L, D]; None for learned tables.

    Args:
        table: the table.
        prefix: number T of rows that belong to no patch.
    """
    if prefix > 1 or table.shape[-1] % 4 or (prefix and table[:, 0].any()):  # the class token's row would be zero
        return None
    patches = max(table.shape[1] - prefix, 0)
    grids = ((rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0)
    return next((grid for grid in grids if computed_kind(table, grid, class_token=prefix > 0)), None)


def _stored_grid(stored: Checkpoint, patch_size: int) -> Grid | None:
    """Return the grid of patches that a pre-training checkpoint of plsc_mae was trained on; None for other files."""
    options: Any = stored.meta.get("args")
    if not isinstance(options, dict) or "method" not in stored.meta or not options.get("input_size"):
        return None
    height, width = pair(options["input_size"])
    return height // patch_size, width // patch_size
