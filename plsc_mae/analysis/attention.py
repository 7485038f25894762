"""Attention maps of a network: attention rollout (Abnar and Zuidema 2020), gradient rollout, and single blocks.

The rollouts follow BUPT-PRIV/MAE-priv utils/vit_explain (after jacobgil/vit-explain). They divide each row by its sum,
as in the paper. With `literal`, they repeat a broadcasting mistake of the original, which divides column j by the sum
of row j. Notation: N tokens, the class token first if there is one, L patches, H heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.attention import record_attention
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.vit import NO_CLASS_TOKEN, VisionTransformer

HeadFusion = Literal["mean", "max", "min"]
Pool = Literal["cls", "mean"]
Floats = npt.NDArray[np.floating[Any]]


@paddle.no_grad()
def attention_maps(encoder: VisionTransformer, images: Tensor) -> list[npt.NDArray[np.float32]]:
    """Return the softmax weights [B, H, N, N] of every block, first block first, for normalized images [B, C, H, W]."""
    with record_attention() as weights:
        encoder.forward_features(images)
    return [layer.numpy() for layer in weights]


@contextmanager
def recorded_blocks(encoder: VisionTransformer, indices: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the head-averaged softmax weights of some blocks in the forward passes within the context.

    In contrast to `attention_maps`, the weights of single heads are in memory for one block at a time, and blocks that
    are not recorded can use a flash kernel.

    Args:
        encoder: the network.
        indices: zero-based indices of the blocks.

    Yields:
        {block index: float32 [B, N, N]} of the newest forward pass.
    """
    averaged: dict[int, Tensor] = {}
    removers = []
    for index in indices:
        recording = contextlib.ExitStack()
        weights: list[list[Tensor]] = []

        def enter(_layer: nn.Layer, _inputs: Any, stack: Any = recording, weights: Any = weights) -> None:
            weights.append(stack.enter_context(record_attention()))

        def leave(
            _layer: nn.Layer, _inputs: Any, _out: Any, stack: Any = recording, weights: Any = weights, i: int = index
        ) -> None:
            averaged[i] = weights.pop()[0].astype("float32").mean(axis=1)
            stack.close()

        block = encoder.blocks[index]
        removers += [block.register_forward_pre_hook(enter), block.register_forward_post_hook(leave)]
    try:
        yield averaged
    finally:
        for remover in removers:
            remover.remove()


class CategoryAttention(NamedTuple):
    """Attention weights of an image and the gradients of one category's logit."""

    category: int  # index of the category
    probability: float  # softmax probability of the category
    # softmax weights [H, N, N] of each layer of the encoder, first layer first
    attentions: list[npt.NDArray[np.float32]]
    gradients: list[npt.NDArray[np.float32]]  # gradients of the logit with respect to each of the attentions


@contextmanager
def _trainable_norms(network: nn.Layer) -> Iterator[None]:
    """Make the scales of layer norms trainable within the context.

    If a scale is frozen, Paddle's CPU kernel (2.6 and 3.3) computes a wrong gradient for the input of the norm.
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
    """Classify an image and compute the gradients of one logit with respect to the attentions.

    Trainable parameters receive gradients too, which takes time; freeze them to avoid that.

    Args:
        network: the classifier, in evaluation mode.
        image: normalized image [1, C, H, W].
        category: index of the category; None selects the one with the largest logit.
    """
    with _trainable_norms(network):  # also makes a frozen network record a graph
        with record_attention() as recorded:
            logits = network(image)[0]
        layers = recorded[: len(network.encoder.blocks)]  # without the layers of an attentive probe, which follow
        for layer in layers:
            layer.retain_grads()
        chosen = int(logits.argmax()) if category is None else category
        logits[chosen].backward()  # not paddle.grad, which fails for non-leaf inputs if a PyLayer is on the path
    return CategoryAttention(
        chosen,
        float(F.softmax(logits, axis=-1)[chosen]),
        [layer.numpy()[0] for layer in layers],
        [layer.grad.numpy()[0] for layer in layers],
    )


def literal_gradients(attentions: Sequence[Floats], gradients: Sequence[Floats]) -> list[Floats]:
    """Return the gradients of the softmax inputs, last layer first, as MAE-priv pairs them with the attentions.

    MAE-priv records gradients with backward hooks on a dropout of rate 0. The hooks run in the reverse order of layers,
    and they receive the gradients of the softmax inputs.

    Args:
        attentions: softmax weights [..., N, N] of each layer, first layer first.
        gradients: gradients with respect to each of the attentions.
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
    """Compute the attention rollout of one image: the product of all layers, each with its residual connection.

    Args:
        attentions: softmax weights [H, N, N] of each layer, first layer first.
        head_fusion: reduction over heads.
        discard_ratio: fraction of each layer's weights to set to 0, the smallest first. The weight of the first token
            to itself is kept.
        layer_index: index in `attentions` of the only layer to use; None uses all layers.
        literal: divide columns instead of rows, see the module.

    Returns:
        Relevance [N, N] of each input token (column) for each output token (row).
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
    """Compute the attention rollout of one image, with attentions weighted by the gradients of one category's logit.

    MAE-priv pairs the attentions with the wrong gradients by mistake, see `literal_gradients`. To reproduce its
    pictures, pass the result of that function as `gradients`, and `literal=True`.

    Args:
        attentions: softmax weights [H, N, N] of each layer, first layer first.
        gradients: gradients of the logit with respect to each of the attentions.
        discard_ratio: fraction of the entries to set to 0 in each layer, the smallest first. The entries are products
            of attention and gradient, averaged over the heads; negative ones are always set to 0.
        literal: divide columns instead of rows, see the module.
        residual: whether to keep the path that runs only through residual connections. It dominates the small
            gradients, so a mean over rows becomes almost uniform; False subtracts it. The relevance of patches for the
            class token is the same either way.

    Returns:
        Relevance [N, N], as in `rollout`.
    """
    layers = []
    for attention, gradient in zip(attentions, gradients, strict=True):
        fused = (attention.astype(np.float64) * gradient).mean(axis=0)
        layers.append(_discard(np.maximum(fused, 0.0), discard_ratio, keep_first=False))
    rolled = _accumulate(layers, literal)
    if not residual:
        sums = [layer.sum(axis=-1) + 1 for layer in layers]  # row sums of layer + identity
        path = np.diag(np.prod(1 / np.asarray(sums), axis=0))  # product of the normalized identities
        rolled = np.maximum(rolled - path, 0.0)  # rounding can make the difference negative
    return rolled


def patch_relevance(
    weights: Floats, grid: tuple[int, int], pool: Pool = "cls", registers: int = 0
) -> npt.NDArray[np.float64]:
    """Return maps of the relevance of each patch for the pooled output.

    Args:
        weights: [..., N, N], in which rows attend to columns; N = 1 + R + L, or R + L without a class token.
        grid: rows and columns of patches.
        pool: "cls" uses the class token's row, "mean" the mean of the patches' rows (for mean-pooled networks).
        registers: number R of register tokens, which precede the patches.

    Returns:
        Maps [..., rows, columns], each scaled to a maximum of 1; a map of zeros stays zero.

    Raises:
        ConfigError: `pool` is "cls" and there is no class token.
        ValueError: the number of tokens does not match the grid.
    """
    first = weights.shape[-1] - grid[0] * grid[1]
    if first - registers not in (0, 1):
        raise ValueError(f"{weights.shape[-1]} tokens do not match a grid of {grid[0]} x {grid[1]} patches")
    if first == registers and pool == "cls":
        raise ConfigError(NO_CLASS_TOKEN)
    rows = weights[..., 0, :] if pool == "cls" else weights[..., first:, :].mean(axis=-2)
    maps = rows[..., first:].reshape(*weights.shape[:-2], *grid).astype(np.float64)
    largest = maps.max(axis=(-2, -1), keepdims=True)
    return np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)


def _discard(fused: npt.NDArray[np.float64], ratio: float, *, keep_first: bool) -> npt.NDArray[np.float64]:
    """Return a copy of [N, N] whose smallest entries, a fraction `ratio`, are 0; `keep_first` protects entry [0, 0]."""
    flat = fused.flatten()
    smallest = np.argsort(flat, kind="stable")[: int(flat.size * ratio)]
    flat[smallest[smallest != 0] if keep_first else smallest] = 0.0
    return flat.reshape(fused.shape)


def _accumulate(layers: Sequence[npt.NDArray[np.float64]], literal: bool) -> npt.NDArray[np.float64]:
    """Average each layer with the identity, divide rows (columns if `literal`) by row sums, and multiply the layers.

    The last layer is the leftmost factor of the product [N, N].
    """
    identity = np.eye(len(layers[0]))
    result = identity
    for layer in layers:
        mixed = (layer + identity) / 2
        sums = mixed.sum(axis=-1)
        result = mixed / (sums if literal else sums[:, None]) @ result
    return result
