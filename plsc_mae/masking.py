"""Which patches are hidden. In the whole repository `mask[B, L]` is bool and True means hidden from the encoder."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.errors import ConfigError


class Mask(NamedTuple):
    """A random mask and the index forms that models need; K visible and M hidden patches, L = K + M."""

    mask: Tensor  # bool [B, L]
    ids_keep: Tensor  # int64 [B, K], in the order of rising noise
    ids_masked: Tensor  # int64 [B, M], in the order of rising noise
    ids_restore: Tensor  # int64 [B, L]: place of each patch in concat(ids_keep, ids_masked)


Rounding = Literal["visible", "hidden"]


def num_visible(num_patches: int, mask_ratio: float, round_down: Rounding = "visible") -> int:
    """Visible patches of L, by products in double precision that are cut off.

    Args:
        num_patches: L.
        mask_ratio: share of hidden patches.
        round_down: which of the two is cut off: "visible" is `int(L * (1 - mask_ratio))` (facebookresearch/mae),
            "hidden" is `L - int(L * mask_ratio)` (BUPT-PRIV/MAE-priv, MAE-pytorch).
    """
    if round_down == "hidden":
        return num_patches - int(mask_ratio * num_patches)
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: Tensor, mask_ratio: float, round_down: Rounding = "visible") -> Mask:
    """Hide the patches with the largest noise, each image by its own (He et al. 2022, section 3).

    Args:
        noise: uniform draws [B, L]; an argument, so that a mask can be fixed and belongs to its sample.
        mask_ratio: share of hidden patches in [0, 1).
        round_down: see `num_visible`.
    """
    keep = num_visible(noise.shape[1], mask_ratio, round_down)
    ids_shuffle = paddle.argsort(noise, axis=1)
    ids_restore = paddle.argsort(ids_shuffle, axis=1)
    return Mask(ids_restore >= keep, ids_shuffle[:, :keep], ids_shuffle[:, keep:], ids_restore)


def mask_from_bool(mask: Tensor) -> Mask:
    """Take a mask that is drawn already, bool [B, L]; visible and hidden patches are then in raster order.

    Raises:
        ValueError: as `split_mask`.
    """
    ids_keep, ids_masked = split_mask(mask)
    return Mask(mask, ids_keep, ids_masked, paddle.argsort(paddle.concat([ids_keep, ids_masked], axis=1), axis=1))


def split_mask(mask: Tensor, num_masked: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices of visible and of hidden patches in raster order: bool [B, L] -> int64 [B, V] and [B, M].

    Args:
        mask: True = hidden; every image hides the same number.
        num_masked: that number M; read from the mask, which waits for the device, when None.

    Raises:
        ValueError: the images hide different numbers of patches, or all, or none; the mask has another shape.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask is [images, patches], got shape {list(mask.shape)}")
    patches = mask.shape[1]
    if num_masked is None:
        counts = mask.astype("int64").sum(axis=1)
        num_masked = int(counts[0])
        if bool((counts != num_masked).any()):
            raise ValueError(f"every image of a batch must hide the same number of patches, got {counts.tolist()}")
    if not 0 < num_masked < patches:
        raise ValueError(f"at least one patch must be hidden and one visible, got {num_masked} hidden of {patches}")
    order = paddle.argsort(mask.astype("int64") * patches + paddle.arange(patches, dtype="int64"), axis=1)
    return order[:, : patches - num_masked], order[:, patches - num_masked :]


@dataclass(frozen=True)
class BlockMaskGenerator:
    """Hides rectangles of random area and shape until exactly the wanted number of patches is hidden.

    The block masks of BEiT (Bao et al. 2021, algorithm 1) as CAE uses them. Blocks are smaller than the grid in both
    directions and may overlap, so the center is hidden far more often than the edges.

    Attributes:
        grid: patches of an image, (rows, columns).
        num_mask_patches: patches to hide.
        min_mask_patches_per_block: smallest area drawn for a block, while so many patches remain to be hidden.
        max_mask_patches_per_block: the most patches a block may add; None for `num_mask_patches`.
        aspect: range of a block's height / width.

    Raises:
        ConfigError: no such mask exists, or drawing it might never end.
    """

    grid: tuple[int, int]
    num_mask_patches: int
    min_mask_patches_per_block: int = 16
    max_mask_patches_per_block: int | None = None
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        _require_hidden_and_visible(self.grid, self.num_mask_patches, f"--num_mask_patches {self.num_mask_patches}")
        flag = f"--min_mask_patches_per_block {self.min_mask_patches_per_block}"
        if min(self.min_mask_patches_per_block, self._max_patches) < 1:
            raise ConfigError(f"{flag} and --max_mask_patches_per_block {self._max_patches} must be at least 1")
        # Areas lie between the two, whichever is larger; what counts is whether the smallest of them fits.
        smallest = min(self.min_mask_patches_per_block, self.num_mask_patches, self._max_patches)
        rows, columns = self.grid
        # Sides are rounded and must come out below the grid's, which bounds the aspect ratio from both ends.
        flattest, steepest = smallest / (columns - 0.5) ** 2, (rows - 0.5) ** 2 / smallest
        if max(flattest, self.aspect[0]) >= min(steepest, self.aspect[1]):
            raise ConfigError(
                f"{flag} is too much for {rows}x{columns} patches: a block must be smaller than the grid in both "
                "directions; give less"
            )

    def __call__(self, rng: random.Random) -> npt.NDArray[np.bool_]:
        """Draw a mask [rows, columns], True where hidden; the draws and their order are those of Atten4Vis/CAE."""
        rows, columns = self.grid
        log_aspect = [math.log(bound) for bound in self.aspect]
        mask = np.zeros(self.grid, np.bool_)
        remaining = self.num_mask_patches
        while remaining > 0:
            most = min(remaining, self._max_patches)
            area = rng.uniform(self.min_mask_patches_per_block, most)  # also from the larger to the smaller
            aspect = math.exp(rng.uniform(*log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
            block = mask[top : top + height, left : left + width]
            added = block.size - int(block.sum())
            if 0 < added <= most:
                block[...] = True
                remaining -= added
        return mask

    @property
    def _max_patches(self) -> int:
        return self.num_mask_patches if self.max_mask_patches_per_block is None else self.max_mask_patches_per_block


@dataclass(frozen=True)
class RandomMaskGenerator:
    """Hides a fixed number of patches anywhere, all of them equally likely.

    Attributes:
        grid: patches of an image, (rows, columns).
        ratio: share to hide, as `--ratio_mask_patches` gives it; the number is cut off, `int(ratio * patches)`.

    Raises:
        ConfigError: nothing would be hidden, or everything.
    """

    grid: tuple[int, int]
    ratio: float

    def __post_init__(self) -> None:
        _require_hidden_and_visible(self.grid, self._num_hidden, f"--ratio_mask_patches {self.ratio}")

    def __call__(self, rng: np.random.Generator | np.random.RandomState) -> npt.NDArray[np.bool_]:
        """Draw a mask [rows, columns], True where hidden, by one shuffle as in Atten4Vis/CAE."""
        patches = self.grid[0] * self.grid[1]
        mask = np.arange(patches) >= patches - self._num_hidden
        rng.shuffle(mask)
        return mask.reshape(self.grid)

    @property
    def _num_hidden(self) -> int:
        return int(self.ratio * (self.grid[0] * self.grid[1]))


def _require_hidden_and_visible(grid: tuple[int, int], hidden: int, flag: str) -> None:
    patches = grid[0] * grid[1]
    if not 0 < hidden < patches:
        raise ConfigError(
            f"{flag} hides {hidden} of {grid[0]}x{grid[1]} patches; at least 1 and at most {patches - 1} can be hidden"
        )
