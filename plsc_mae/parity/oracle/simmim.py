"""SimMIM with a Vision Transformer (Xie et al. 2022), from images and a mask to the loss, and its learning rates.

B batch, L patches, D width, H heads, P patch size, C channels. Written from the paper and microsoft/SimMIM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plsc_mae.parity.oracle.layers import (
    Array,
    Parameters,
    embed_patches,
    layer_norm,
    linear,
    mlp,
    patchify,
    softmax,
    stack,
    submodule,
)

LOSS_EPS = 1e-5  # added to the number of hidden pixels, so that a batch without any has loss 0
TABLE = "rel_pos_bias.relative_position_bias_table"


@dataclass(frozen=True, kw_only=True)
class SimMIMOptions:
    """Options of a SimMIM network that its parameters do not determine."""

    num_heads: int  # attention heads H
    norm_eps: float = 1e-6  # eps of every layer norm


def forward(
    parameters: Parameters, images: Array, mask: npt.NDArray[np.bool_], options: SimMIMOptions
) -> dict[str, Array]:
    """Replace hidden patches by the mask token, encode all patches, predict their pixels, and compute the loss.

    Args:
        parameters: all parameters of the network. The tables among them determine how the encoder adds positions: one
            shared table of relative positions (the published ViT), one table per block, or `pos_embed`.
        images: [B, C, H, W], normalized; they are the target, too.
        mask: [B, L], True = hidden.
        options: options of the network.

    Returns:
        Intermediate values in the order of computation: "encoder.embed", "encoder.blocks.0" ... and "latent"
        [B, 1 + L, D], "pred" and "target" [B, L, C*P*P], "mask" [B, L] with 1.0 for hidden, and the scalar "loss".
    """
    patch_size = parameters["encoder.patch_embed.proj.weight"].shape[-1]
    layers = encode(submodule(parameters, "encoder"), images, mask, options)
    layers["pred"] = linear(layers["latent"][:, 1:], submodule(parameters, "decoder"))
    layers["target"] = patchify(images, patch_size, channels_first=True)
    layers["mask"] = mask.astype(np.float64)
    layers["loss"] = masked_l1(layers["pred"], layers["target"], layers["mask"], channels=images.shape[1])
    return layers


def encode(
    parameters: Parameters, images: Array, mask: npt.NDArray[np.bool_], options: SimMIMOptions
) -> dict[str, Array]:
    """Run a ViT over the class token and all patches; hidden patches enter as the mask token.

    The substitution happens before absolute positions are added, so a mask token receives the position of its patch.

    Returns:
        "encoder.embed", "encoder.blocks.0" ... and "latent", each [B, 1 + L, D].
    """
    patch_size = parameters["patch_embed.proj.weight"].shape[-1]
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    tokens = np.where(
        mask[..., None], parameters["mask_token"], embed_patches(images, submodule(parameters, "patch_embed.proj"))
    )
    cls = np.broadcast_to(parameters["cls_token"], (len(tokens), 1, tokens.shape[-1]))
    x = np.concatenate([cls, tokens], axis=1)
    if "pos_embed" in parameters:
        x = x + parameters["pos_embed"]

    layers = {"encoder.embed": x}
    for i, weights in enumerate(stack(parameters, "blocks")):
        tables = [source[name] for source, name in ((parameters, TABLE), (weights, f"attn.{TABLE}")) if name in source]
        x = biased_block(x, weights, [relative_bias(table, grid) for table in tables], options)
        layers[f"encoder.blocks.{i}"] = x
    layers["latent"] = layer_norm(x, submodule(parameters, "norm"), options.norm_eps)
    return layers


def relative_bias(table: Array, grid: tuple[int, int]) -> Array:
    """Return the biases [H, 1 + L, 1 + L] of attention scores (head, query, key) from a table of relative positions.

    Args:
        table: [(2*rows - 1) * (2*columns - 1) + 3, H]. The entries before the last three belong to the differences
            query position - key position, from the most negative one, row by row. The last three belong to
            class token -> patch, patch -> class token and class token -> class token.
        grid: rows and columns of patches.
    """
    rows, columns = grid
    differences = table[:-3].reshape(2 * rows - 1, 2 * columns - 1, -1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    bias = np.empty((1 + rows * columns, 1 + rows * columns, table.shape[1]))
    bias[1:, 1:] = differences[row[:, None] - row + rows - 1, column[:, None] - column + columns - 1]
    bias[0, 1:], bias[1:, 0], bias[0, 0] = table[-3:]
    return bias.transpose(2, 0, 1)


def biased_attention(x: Array, parameters: Parameters, biases: Sequence[Array], num_heads: int) -> Array:
    """Return the self-attention of tokens [B, N, D], with `biases` [H, N, N] added to the scores and no key bias."""

    def heads(tokens: Array) -> Array:
        return tokens.reshape(*tokens.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)  # [B, H, N, D/H]

    projected = np.split(x @ parameters["qkv.weight"], 3, axis=-1)
    q, k, v = projected[0] + parameters["q_bias"], projected[1], projected[2] + parameters["v_bias"]
    scores = heads(q) @ heads(k).transpose(0, 1, 3, 2) / math.sqrt(x.shape[-1] // num_heads)
    for bias in biases:
        scores = scores + bias
    mixed = softmax(scores) @ heads(v)
    return linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), submodule(parameters, "proj"))


def biased_block(x: Array, parameters: Parameters, biases: Sequence[Array], options: SimMIMOptions) -> Array:
    """Apply a pre-norm block: x += gamma_1 attention(norm1(x), with `biases`); x += gamma_2 mlp(norm2(x))."""
    normed = layer_norm(x, submodule(parameters, "norm1"), options.norm_eps)
    attended = biased_attention(normed, submodule(parameters, "attn"), biases, options.num_heads)
    x = x + parameters["gamma_1"] * attended
    transformed = mlp(layer_norm(x, submodule(parameters, "norm2"), options.norm_eps), submodule(parameters, "mlp"))
    return x + parameters["gamma_2"] * transformed


def masked_l1(pred: Array, target: Array, mask: Array, channels: int) -> Array:
    """Return the mean of |pred - target| over the hidden pixels of the whole batch and over channels.

    Args:
        pred: [B, L, C*P*P].
        target: same shape.
        mask: [B, L], 1.0 = hidden.
        channels: C.
    """
    return masked_mean(np.abs(pred - target), mask, channels)


def masked_mean(errors: Array, mask: Array, channels: int) -> Array:
    """Return the mean of errors [B, L, C*P*P] over the hidden pixels of the whole batch and over channels."""
    pixels = mask.sum() * (errors.shape[-1] // channels)  # hidden pixels of one channel
    return (errors.sum(axis=-1) * mask).sum() / (pixels + LOSS_EPS) / channels


def multistep_rate(
    update: int, *, peak: float, warmup: int, warmup_rate: float, milestones: Sequence[int], factor: float
) -> float:
    """Return the learning rate of `update`, counted from 0: linear warm-up, then a constant rate with drops.

    `warmup` and `milestones` count updates, and each milestone multiplies the rate by `factor`. The original advances
    its scheduler after the optimizer, so its rates come one update late: updates 0 and 1 both have the first rate.
    """
    iteration = max(update - 1, 0)
    if iteration < warmup:
        return warmup_rate + iteration * (peak - warmup_rate) / warmup
    return peak * factor ** sum(milestone <= iteration for milestone in milestones)
