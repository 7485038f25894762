"""Trivial predictors of hidden patches and tokens, whose losses are references for the loss of a pre-training run.

Notation: B images, L patches of P x P pixels with C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MEAN_COLOR, NEAREST_PATCH, BILINEAR, ZERO = "mean_color", "nearest_patch", "bilinear", "zero"
UNIFORM, BATCH_TOKENS, ALL_TOKENS = "uniform", "batch_tokens", "all_tokens"
DESCRIPTIONS = {
    MEAN_COLOR: "mean of the image's visible pixels",
    NEAREST_PATCH: "nearest visible patch",
    BILINEAR: "bilinear fill from visible pixels",
    ZERO: "zero, the mean of every normalized patch",
    UNIFORM: "the same probability for every token",
    BATCH_TOKENS: "token frequencies of each batch",
    ALL_TOKENS: "token frequencies of all batches",
}
CONTEXT_FREE = (MEAN_COLOR, ZERO, UNIFORM, BATCH_TOKENS, ALL_TOKENS)  # equal for all hidden patches of an image

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def fill_hidden(
    patches: npt.NDArray[np.floating[Any]], hidden: npt.NDArray[Any], grid: tuple[int, int], patch_size: int
) -> dict[str, Floats]:
    """Fill the hidden patches of images from their visible pixels in three ways.

    "mean_color" is the mean color of the image's visible pixels. "nearest_patch" copies the visible patch with the
    nearest center; of several at the same distance, the first in raster order. "bilinear" takes, for every pixel, the
    nearest visible pixels to the left, right, top and bottom, with weights 1 / distance: between two of them this is
    linear interpolation. A pixel without any of them gets the mean color.

    Args:
        patches: pixels [B, L, P*P*C], channel fastest.
        hidden: [B, L], true for hidden patches; every image has a visible patch.
        grid: rows and columns of patches.
        patch_size: P.

    Returns:
        {name: patches of the same shape}; the values of visible patches have no meaning.
    """
    batch, length, values = patches.shape
    pixels = np.asarray(patches, np.float32).reshape(batch, length, patch_size * patch_size, -1)
    visible = ~np.asarray(hidden, np.bool_)
    mean = np.stack([image[seen].mean(axis=(0, 1)) for image, seen in zip(pixels, visible, strict=True)])  # [B, C]
    nearest = np.stack([image[_nearest(seen, grid)] for image, seen in zip(pixels, visible, strict=True)])
    tiles = pixels.reshape(batch, *grid, patch_size, patch_size, -1)
    filled = {
        MEAN_COLOR: np.broadcast_to(mean[:, None, None], pixels.shape),
        NEAREST_PATCH: nearest,
        BILINEAR: _bilinear(tiles, visible.reshape(batch, *grid), mean),
    }
    return {name: np.ascontiguousarray(fill.reshape(batch, length, values)) for name, fill in filled.items()}


def token_losses(batches: Sequence[npt.NDArray[np.integer[Any]]], num_classes: int) -> dict[str, float]:
    """Return the cross entropies, in nats, of predictions that are the same for all hidden patches.

    Frequencies are those of the tokens to predict, so no other prediction of this kind has a smaller loss.

    Args:
        batches: tokens of the hidden patches, one array per batch, all of the same size.
        num_classes: size K of the vocabulary.
    """
    return {
        UNIFORM: float(np.log(num_classes)),
        BATCH_TOKENS: float(np.mean([_entropy(tokens) for tokens in batches])),
        ALL_TOKENS: _entropy(np.concatenate([tokens.reshape(-1) for tokens in batches])),
    }


def mean_over_batches(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every loss over the batches, by name."""
    return {name: float(np.mean([batch[name] for batch in losses])) for name in losses[0]}


def _entropy(tokens: npt.NDArray[np.integer[Any]]) -> float:
    counts = np.bincount(tokens.reshape(-1))
    shares = counts[counts > 0] / tokens.size
    return float(-(shares * np.log(shares)).sum())


def _nearest(visible: Bools, grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return, for each of the L patches, the index of the visible patch with the nearest center."""
    centers = np.stack(np.divmod(np.arange(visible.size), grid[1]), axis=1)
    seen = np.flatnonzero(visible)
    squared = ((centers[:, None] - centers[None, seen]) ** 2).sum(axis=-1)
    return seen[squared.argmin(axis=1)]


def _bilinear(tiles: Floats, visible: Bools, mean: Floats) -> Floats:
    """Return the bilinear fill of `tiles`, both [B, rows, columns, P, P, C]; `visible` is [B, rows, columns]."""
    total, weights = np.zeros_like(tiles), np.zeros((*tiles.shape[:-1], 1), np.float32)
    for transposed in (False, True):  # swapped axes turn top into left
        turned, seen = (tiles, visible) if not transposed else (_transpose(tiles), visible.transpose(0, 2, 1))
        for mirrored in (False, True):
            source, mask = (turned, seen) if not mirrored else (turned[:, :, ::-1, :, ::-1], seen[:, :, ::-1])
            color, weight = _from_left(source, mask)
            if mirrored:
                color, weight = color[:, :, ::-1, :, ::-1], weight[:, :, ::-1, :, ::-1]
            if transposed:
                color, weight = _transpose(color), _transpose(weight)
            total += color * weight
            weights += weight
    return np.where(weights > 0, total / np.maximum(weights, np.float32(1e-12)), mean[:, None, None, None, None])


def _transpose(tiles: Floats) -> Floats:
    return tiles.transpose(0, 2, 1, 4, 3, 5)


def _from_left(tiles: Floats, visible: Bools) -> tuple[Floats, Floats]:
    """Return colors and weights 1 / distance of the nearest visible pixel to the left of each pixel's patch.

    Both have the shape of `tiles` [B, rows, columns, P, P, C], weights with a single channel. If there is no such
    pixel, the weight is 0.
    """
    columns, side = visible.shape[2], tiles.shape[4]
    at = np.arange(columns)
    last = np.maximum.accumulate(np.where(visible, at, -1), axis=2)
    before = np.concatenate([np.full_like(last[:, :, :1], -1), last[:, :, :-1]], axis=2)  # strictly left
    colors = np.take_along_axis(tiles[:, :, :, :, -1], before.clip(0)[..., None, None], axis=2)
    distances = ((at - before - 1) * side)[..., None] + np.arange(1, side + 1)
    weights = np.where(before[..., None] >= 0, 1.0 / distances, 0.0).astype(np.float32)
    shape = (*tiles.shape[:-1], 1)
    return (
        np.broadcast_to(colors[:, :, :, :, None], tiles.shape),
        np.broadcast_to(weights[:, :, :, None, :, None], shape),
    )
