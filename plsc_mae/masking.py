"""Masks of patches; everywhere in plsc_mae `mask` is bool [B, L], and True means hidden from the encoder."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.errors import ConfigError, flag


class Mask(NamedTuple):
    """A mask and its patch ids, for images with K visible and M hidden patches, L = K + M.

    `ids_keep` and `ids_masked` are in the order of rising noise, or in raster order if the mask is not made from noise.
    """

    mask: Tensor  # bool [B, L]
    ids_keep: Tensor  # int64 [B, K]
    ids_masked: Tensor  # int64 [B, M]
    ids_restore: Tensor  # int64 [B, L], the index of each patch in concat(ids_keep, ids_masked)


Rounding = Literal["visible", "hidden"]


def num_visible(num_patches: int, mask_ratio: float, round_down: Rounding = "visible") -> int:
    """Return the number of visible patches of an image, computed in double precision as in the original.

    Args:
        num_patches: number of patches L.
        mask_ratio: share of hidden patches.
        round_down: the count that is rounded down: "visible" returns `int(L * (1 - mask_ratio))`
            (facebookresearch/mae), "hidden" returns `L - int(L * mask_ratio)` (BUPT-PRIV/MAE-priv, MAE-pytorch).
    """
    if round_down == "hidden":
        return num_patches - int(mask_ratio * num_patches)
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: Tensor, mask_ratio: float, round_down: Rounding = "visible") -> Mask:
    """Return the mask that hides, in each image, the patches with the largest noise (He et al. 2022, section 3).

    Args:
        noise: uniform draws [B, L]. The caller draws them, so that the mask depends on the sample and can be fixed.
        mask_ratio: share of hidden patches in [0, 1).
        round_down: see `num_visible`.
    """
    keep = num_visible(noise.shape[1], mask_ratio, round_down)
    ids_shuffle = paddle.argsort(noise, axis=1)
    ids_restore = paddle.argsort(ids_shuffle, axis=1)
    return Mask(ids_restore >= keep, ids_shuffle[:, :keep], ids_shuffle[:, keep:], ids_restore)


def mask_from_bool(mask: Tensor) -> Mask:
    """Return the `Mask` of a bool tensor [B, L]; visible and hidden patches are in raster order."""
    ids_keep, ids_masked = split_mask(mask)
    return Mask(mask, ids_keep, ids_masked, paddle.argsort(paddle.concat([ids_keep, ids_masked], axis=1), axis=1))


def split_mask(mask: Tensor, num_masked: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the ids of visible and of hidden patches in raster order, int64 [B, K] and [B, M].

    Args:
        mask: bool [B, L], True = hidden; every image hides the same number.
        num_masked: the number M of hidden patches per image. None reads it from the mask, which waits for the device.

    Raises:
        ValueError: all or no patches are hidden; the mask does not have two axes; the images hide different numbers of
            patches (checked only if `num_masked` is None).
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask must have the shape [images, patches], got {list(mask.shape)}")
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
    """A generator of masks made of random rectangular blocks, with an exact number of hidden patches.

    These are the block masks of BEiT (Bao et al. 2021, algorithm 1) as CAE uses them. Blocks are smaller than the
    grid in both directions and may overlap, so the center is hidden far more often than the edges.

    Raises:
        ConfigError: no such mask exists, or drawing one might never end.
    """

    grid: tuple[int, int]  # (rows, columns) of patches of an image
    num_mask_patches: int  # number of patches to hide
    # smallest area drawn for a block, in patches, unless the block may hide only fewer
    min_mask_patches_per_block: int = 16
    # largest number of patches that one block newly hides; None for `num_mask_patches`
    max_mask_patches_per_block: int | None = None
    aspect: tuple[float, float] = (0.3, 1 / 0.3)  # range (lowest, highest) of height / width of a block

    def __post_init__(self) -> None:
        _require_hidden_and_visible(
            self.grid, self.num_mask_patches, f"{flag('num_mask_patches')} {self.num_mask_patches}"
        )
        given = f"{flag('min_mask_patches_per_block')} {self.min_mask_patches_per_block}"
        if min(self.min_mask_patches_per_block, self._max_patches) < 1:
            raise ConfigError(
                f"{given} and {flag('max_mask_patches_per_block')} {self._max_patches} must be at least 1"
            )
        # The two bounds may come in either order; areas lie between them, and the smallest must fit.
        smallest = min(self.min_mask_patches_per_block, self.num_mask_patches, self._max_patches)
        rows, columns = self.grid
        # The rounded sides of a block must be smaller than the grid's; this limits the aspect ratio on both ends.
        flattest, steepest = smallest / (columns - 0.5) ** 2, (rows - 0.5) ** 2 / smallest
        if max(flattest, self.aspect[0]) >= min(steepest, self.aspect[1]):
            raise ConfigError(
                f"{given} is too large for {rows}x{columns} patches: a block must be smaller than the grid in both "
                "directions; give a smaller number"
            )

    def __call__(self, rng: random.Random) -> npt.NDArray[np.bool_]:
        """Draw a mask [rows, columns], True = hidden, with the draws of Atten4Vis/CAE in the same order."""
        rows, columns = self.grid
        log_aspect = [math.log(bound) for bound in self.aspect]
        mask = np.zeros(self.grid, np.bool_)
        remaining = self.num_mask_patches
        while remaining > 0:
            most = min(remaining, self._max_patches)
            area = rng.uniform(self.min_mask_patches_per_block, most)  # accepts the bounds in either order
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
    """A generator of masks with a fixed number of hidden patches, each patch equally likely.

    Raises:
        ConfigError: no patch would be hidden, or all of them.
    """

    grid: tuple[int, int]  # (rows, columns) of patches of an image
    ratio: float  # share of hidden patches; `int(ratio * patches)` are hidden

    def __post_init__(self) -> None:
        _require_hidden_and_visible(self.grid, self._num_hidden, f"{flag('ratio_mask_patches')} {self.ratio}")

    def __call__(self, rng: np.random.Generator | np.random.RandomState) -> npt.NDArray[np.bool_]:
        """Draw a mask [rows, columns], True = hidden, by one shuffle as in Atten4Vis/CAE."""
        patches = self.grid[0] * self.grid[1]
        mask = np.arange(patches) >= patches - self._num_hidden
        rng.shuffle(mask)
        return mask.reshape(self.grid)

    @property
    def _num_hidden(self) -> int:
        return int(self.ratio * (self.grid[0] * self.grid[1]))


def _require_hidden_and_visible(grid: tuple[int, int], hidden: int, flag: str) -> None:
    patches = grid[0] * grid[1]
    if patches < 2:
        raise ConfigError("an image has one patch, which cannot be hidden; use larger images or smaller patches")
    if not 0 < hidden < patches:
        raise ConfigError(
            f"{flag} hides {hidden} of {grid[0]}x{grid[1]} patches; at least 1 and at most {patches - 1} can be hidden"
        )
