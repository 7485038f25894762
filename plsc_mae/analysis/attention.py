"""Which patches a network attends to: attention rollout (Abnar and Zuidema 2020), with gradients, or the last layer.

The steps and the literal mode are those of BUPT-PRIV/MAE-priv utils/vit_explain (after jacobgil/vit-explain). The
literal mode divides COLUMN j by the sum of row j, as the original does by an accident of broadcasting; by default rows
are divided by their sums, as the paper means it. N tokens, the class token first, L patches, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.models.layers import record_attention
from plsc_mae.models.vit import VisionTransformer

HeadFusion = Literal["mean", "max", "min"]
Pool = Literal["cls", "mean"]
Floats = npt.NDArray[np.floating[Any]]


@paddle.no_grad()
def attention_maps(encoder: VisionTransformer, images: Tensor) -> list[npt.NDArray[np.float32]]:
    """Softmax weights [B, H, N, N] of every block for images [B, C, H, W], normalized."""
    with record_attention() as weights:
        encoder.forward_features(images)
    return [layer.numpy() for layer in weights]


def rollout(
    attentions: Sequence[Floats],
    *,
    head_fusion: HeadFusion = "max",
    discard_ratio: float = 0.9,
    layer_index: int | None = None,
    literal: bool = False,
) -> npt.NDArray[np.float64]:
    """Multiply the attentions of all layers, each with its residual path, for one image.

    Args:
        attentions: softmax weights [H, N, N] of each layer, first layer first.
        head_fusion: how heads become one matrix.
        discard_ratio: share of each layer's smallest weights that is set to 0; the class token's own weight stays.
        layer_index: use this layer alone.
        literal: divide columns, see above.

    Returns:
        [N, N]: how much each token (row) has of each input token (column).
    """
    chosen = attentions if layer_index is None else [attentions[layer_index]]
    fused = [getattr(layer.astype(np.float64), head_fusion)(axis=0) for layer in chosen]
    return _accumulate([_discard(layer, discard_ratio, keep_first=True) for layer in fused], literal)


def gradient_rollout(
    attentions: Sequence[Floats], gradients: Sequence[Floats], *, discard_ratio: float = 0.9, literal: bool = False
) -> npt.NDArray[np.float64]:
    """Roll attentions out weighted by the gradients of one category's logit, for one image.

    The original pairs each layer with the gradient of the softmax input of the layer as far from the other end; its
    pictures need that pairing from the caller besides `literal`.

    Args:
        attentions: softmax weights [H, N, N] of each layer, first layer first.
        gradients: of the logit with respect to each of them.
        discard_ratio: share of each layer's smallest products that is set to 0.
        literal: divide columns, see above.

    Returns:
        [N, N], as `rollout`.
    """
    layers = []
    for attention, gradient in zip(attentions, gradients, strict=True):
        fused = (attention.astype(np.float64) * gradient).mean(axis=0)
        layers.append(_discard(np.maximum(fused, 0.0), discard_ratio, keep_first=False))
    return _accumulate(layers, literal)


def patch_relevance(weights: Floats, grid: tuple[int, int], pool: Pool = "cls") -> npt.NDArray[np.float64]:
    """What the pooled output takes from each patch, as a map.

    Args:
        weights: [..., N, N] of rows that attend to columns; N = 1 + L, or L for networks without a class token.
        grid: rows and columns of patches.
        pool: "cls" reads the class token's row, "mean" the mean of the patches' rows, for mean-pooled networks.

    Returns:
        [..., rows, columns], the largest value of each map 1; a map without any weight is all 0.
    """
    first = weights.shape[-1] - grid[0] * grid[1]  # 1 with a class token
    if first not in (0, 1) or (first == 0 and pool == "cls"):
        raise ValueError(f"{weights.shape[-1]} tokens do not go with {grid[0]} x {grid[1]} patches and pool '{pool}'")
    rows = weights[..., 0, :] if pool == "cls" else weights[..., first:, :].mean(axis=-2)
    maps = rows[..., first:].reshape(*weights.shape[:-2], *grid).astype(np.float64)
    largest = maps.max(axis=(-2, -1), keepdims=True)
    return np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)


def _discard(fused: npt.NDArray[np.float64], ratio: float, *, keep_first: bool) -> npt.NDArray[np.float64]:
    """Set the smallest entries of [N, N] to 0, all but entry 0 if that is kept."""
    flat = fused.flatten()
    smallest = np.argsort(flat, kind="stable")[: int(flat.size * ratio)]
    flat[smallest[smallest != 0] if keep_first else smallest] = 0.0
    return flat.reshape(fused.shape)


def _accumulate(layers: Sequence[npt.NDArray[np.float64]], literal: bool) -> npt.NDArray[np.float64]:
    """Product of the layers, the last one leftmost, each averaged with the identity and normalized."""
    identity = np.eye(len(layers[0]))
    result = identity
    for layer in layers:
        mixed = (layer + identity) / 2
        sums = mixed.sum(axis=-1)
        result = mixed / (sums if literal else sums[:, None]) @ result
    return result
