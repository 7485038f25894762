"""Which patches a network attends to: attention rollout (Abnar and Zuidema 2020), with gradients, or the last layer.

The steps and the literal mode are those of BUPT-PRIV/MAE-priv utils/vit_explain (after jacobgil/vit-explain). The
literal mode divides COLUMN j by the sum of row j, as the original does by an accident of broadcasting; by default rows
are divided by their sums, as the paper means it. N tokens, the class token first, L patches, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.layers import record_attention
from plsc_mae.models.vit import NO_CLASS_TOKEN, VisionTransformer

HeadFusion = Literal["mean", "max", "min"]
Pool = Literal["cls", "mean"]
Floats = npt.NDArray[np.floating[Any]]


@paddle.no_grad()
def attention_maps(encoder: VisionTransformer, images: Tensor) -> list[npt.NDArray[np.float32]]:
    """Softmax weights [B, H, N, N] of every block for images [B, C, H, W], normalized."""
    with record_attention() as weights:
        encoder.forward_features(images)
    return [layer.numpy() for layer in weights]


class CategoryAttention(NamedTuple):
    """What the logit of one category for one image has to do with the attentions.

    Attributes:
        category: its number.
        probability: of the category, by softmax of the logits.
        attentions: softmax weights [H, N, N] of each layer of the encoder, first layer first.
        gradients: of the logit with respect to each of them.
    """

    category: int
    probability: float
    attentions: list[npt.NDArray[np.float32]]
    gradients: list[npt.NDArray[np.float32]]


@contextmanager
def _trainable_norms(network: nn.Layer) -> Iterator[None]:
    """Let the scales of layer norms have gradients for a while.

    Where a scale is frozen, Paddle's CPU kernel (2.6 and 3.3) gives another gradient to what goes into the norm.
    """
    scales = [layer.weight for layer in network.sublayers() if isinstance(layer, nn.LayerNorm)]
    frozen = [scale for scale in scales if scale.stop_gradient]
    for scale in frozen:
        scale.stop_gradient = False
    try:
        yield
    finally:
        for scale in frozen:
            scale.stop_gradient = True
            scale.clear_gradient(False)


def category_attention(network: ImageClassifier, image: Tensor, category: int | None = None) -> CategoryAttention:
    """Classify an image and go back from one logit to the attentions.

    Parameters that are trained get gradients too, which takes time; freeze them where that is not wanted.

    Args:
        network: the classifier, in evaluation mode.
        image: [1, C, H, W], normalized.
        category: its number; None for the one of the largest logit.
    """
    with _trainable_norms(network):  # which also gives frozen networks a graph
        with record_attention() as recorded:
            logits = network(image)[0]
        layers = recorded[: len(network.encoder.blocks)]  # those of an attentive probe follow
        for layer in layers:
            layer.retain_grads()
        chosen = int(logits.argmax()) if category is None else category
        logits[chosen].backward()  # paddle.grad fails where a PyLayer is on the way to inputs that are not leaves
    return CategoryAttention(
        chosen,
        float(F.softmax(logits, axis=-1)[chosen]),
        [layer.numpy()[0] for layer in layers],
        [layer.grad.numpy()[0] for layer in layers],
    )


def literal_gradients(attentions: Sequence[Floats], gradients: Sequence[Floats]) -> list[Floats]:
    """Gradients as MAE-priv pairs them with attentions: of the softmax inputs, last layer first.

    Its backward hooks run in the reverse order of layers, on what has become of a dropout of rate 0.

    Args:
        attentions: softmax weights [..., N, N] of each layer, first layer first.
        gradients: with respect to each of them.
    """
    pairs = zip(attentions, gradients, strict=True)
    return [a * (g - (g * a).sum(axis=-1, keepdims=True)) for a, g in pairs][::-1]


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
    attentions: Sequence[Floats],
    gradients: Sequence[Floats],
    *,
    discard_ratio: float = 0.9,
    literal: bool = False,
    residual: bool = True,
) -> npt.NDArray[np.float64]:
    """Roll attentions out weighted by the gradients of one category's logit, for one image.

    The original pairs each layer with the gradient of the softmax input of the layer as far from the other end; its
    pictures need the gradients of `literal_gradients` besides `literal`.

    Args:
        attentions: softmax weights [H, N, N] of each layer, first layer first.
        gradients: of the logit with respect to each of them.
        discard_ratio: share of each layer's smallest products that is set to 0.
        literal: divide columns, see above.
        residual: whether a token also has what reaches it by no attention, itself. Gradients are small beside that, so
            that a mean over rows is all but even with it; the class token's row of patches is the same either way.

    Returns:
        [N, N], as `rollout`.
    """
    layers = []
    for attention, gradient in zip(attentions, gradients, strict=True):
        fused = (attention.astype(np.float64) * gradient).mean(axis=0)
        layers.append(_discard(np.maximum(fused, 0.0), discard_ratio, keep_first=False))
    rolled = _accumulate(layers, literal)
    if not residual:
        sums = [layer.sum(axis=-1) + 1 for layer in layers]  # of twice the rows, with the identity
        rolled = np.maximum(rolled - np.diag(np.prod(1 / np.asarray(sums), axis=0)), 0.0)  # but for rounding
    return rolled


def patch_relevance(weights: Floats, grid: tuple[int, int], pool: Pool = "cls") -> npt.NDArray[np.float64]:
    """What the pooled output takes from each patch, as a map.

    Args:
        weights: [..., N, N] of rows that attend to columns; N = 1 + L, or L for networks without a class token.
        grid: rows and columns of patches.
        pool: "cls" reads the class token's row, "mean" the mean of the patches' rows, for mean-pooled networks.

    Returns:
        [..., rows, columns], the largest value of each map 1; a map without any weight is all 0.

    Raises:
        ConfigError: the class token's row is asked of a network that has none.
    """
    first = weights.shape[-1] - grid[0] * grid[1]  # 1 with a class token
    if first not in (0, 1):
        raise ValueError(f"{weights.shape[-1]} tokens do not go with {grid[0]} x {grid[1]} patches")
    if first == 0 and pool == "cls":
        raise ConfigError(NO_CLASS_TOKEN)
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
