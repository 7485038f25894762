"""The layers of a Vision Transformer in float64 NumPy.

B batch, N tokens, D width, H heads, L patches, P patch size, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Parameters = Mapping[str, Array]
Positions = Literal["column first", "row first", "sinusoid", "given"]


def submodule(parameters: Parameters, prefix: str) -> dict[str, Array]:
    """Return the parameters whose names start with `prefix.`, keyed by the rest of the name."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in parameters.items() if name.startswith(start)}


def stack(parameters: Parameters, prefix: str) -> list[dict[str, Array]]:
    """Return the parameters of the layers `prefix.0`, `prefix.1`, ..., one dictionary per layer."""
    blocks: list[dict[str, Array]] = []
    while block := submodule(parameters, f"{prefix}.{len(blocks)}"):
        blocks.append(block)
    return blocks


def linear(x: Array, parameters: Parameters, *, bias: bool = True) -> Array:
    """Return x W + b, or x W without `bias`: [..., in] -> [..., out]."""
    y = x @ parameters["weight"]
    return y + parameters["bias"] if bias else y


def layer_norm(x: Array, parameters: Parameters, eps: float) -> Array:
    """Return x standardized over the last axis (biased variance, eps inside the root), then scaled and shifted."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centered).mean(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + eps) * parameters["weight"] + parameters["bias"]


def erf(x: Array) -> Array:
    """Return the error function of every element."""
    values = np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size)
    return values.reshape(x.shape)


def gelu(x: Array) -> Array:
    """Return x times the standard normal distribution function at x, not approximated (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def cross_entropy(logits: Array, labels: npt.NDArray[np.int64]) -> Array:
    """Return the mean of -log softmax(logits)[label] over the rows of `logits` [N, K]; `labels` [N]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


def attention(q: Array, k: Array, v: Array, num_heads: int) -> Array:
    """Return softmax(q k^T / sqrt(D / H)) v of every head: [B, M, D], [B, N, D], [B, N, D] -> [B, M, D]."""

    def heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)  # [B, H, N, D/H]

    scores = heads(q) @ heads(k).transpose(0, 1, 3, 2) * (q.shape[-1] // num_heads) ** -0.5
    mixed = softmax(scores) @ heads(v)
    return mixed.transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1)


def self_attention(x: Array, parameters: Parameters, num_heads: int, *, k_bias: bool) -> Array:
    """Return the self-attention of the tokens [B, N, D].

    The columns of `qkv.weight` are those of q, k and v in this order, each grouped by head. Without `k_bias`, q and v
    have biases of their own and keys have no bias, as in BEiT.
    """
    if k_bias:
        bias = parameters["qkv.bias"]
    else:
        bias = np.concatenate([parameters["q_bias"], np.zeros_like(parameters["q_bias"]), parameters["v_bias"]])
    q, k, v = np.split(x @ parameters["qkv.weight"] + bias, 3, axis=-1)
    return linear(attention(q, k, v, num_heads), submodule(parameters, "proj"))


def mlp(x: Array, parameters: Parameters) -> Array:
    """Apply two linear layers with a GELU between them: [B, N, D] -> [B, N, D]."""
    return linear(gelu(linear(x, submodule(parameters, "fc1"))), submodule(parameters, "fc2"))


def block(x: Array, parameters: Parameters, num_heads: int, *, k_bias: bool, eps: float) -> Array:
    """Return the output [B, N, D] of a pre-norm block: x += gamma_1 attention(norm1(x)); x += gamma_2 mlp(norm2(x)).

    Without layer scale, `gamma_1` and `gamma_2` are missing from the parameters and count as 1.
    """
    normed = layer_norm(x, submodule(parameters, "norm1"), eps)
    attended = self_attention(normed, submodule(parameters, "attn"), num_heads, k_bias=k_bias)
    x = x + parameters.get("gamma_1", np.ones(1)) * attended
    transformed = mlp(layer_norm(x, submodule(parameters, "norm2"), eps), submodule(parameters, "mlp"))
    return x + parameters.get("gamma_2", np.ones(1)) * transformed


def patchify(images: Array, patch_size: int, *, channels_first: bool = False) -> Array:
    """Cut images [B, C, H, W] into patches [B, L, P*P*C] in raster order.

    The elements of a patch are ordered by row, column, channel, or with `channels_first` by channel, row, column.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    order = (0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)
    return cut.transpose(order).reshape(batch, rows * columns, -1)


def embed_patches(images: Array, parameters: Parameters) -> Array:
    """Apply the patch embedding, a convolution with stride P, as one matrix product: [B, C, H, W] -> [B, L, D]."""
    kernel = parameters["weight"]
    pixels = patchify(images, kernel.shape[-1], channels_first=True)
    return pixels @ kernel.reshape(len(kernel), -1).T + parameters["bias"]


def take(x: Array, ids: npt.NDArray[np.int64]) -> Array:
    """Gather tokens by the ids of each image: [B, N, D] and [B, M] -> [B, M, D]."""
    return np.take_along_axis(x, ids[..., None], axis=1)


def position_table(kind: Positions, dim: int, grid: tuple[int, int]) -> Array:
    """Return a table [L, D] of fixed position embeddings, rounded to float32 as every implementation stores it.

    "row first" and "column first" use half of the channels for the row and half for the column, in the order of the
    name. Each half holds the sines, then the cosines, of position * 10000^-(i / (D/4)). On a grid of h rows and w
    columns, "row first" encodes (k // h, k % h) for patch k, as if the grid had w rows and h columns, because MAE-priv
    and CAE exchange the sides. "sinusoid" alternates sine and cosine of the raster index (Vaswani et al. 2017).
    """
    rows, columns = grid
    index = np.arange(rows * columns, dtype=np.float64)
    if kind == "sinusoid":
        pair = np.arange(dim) // 2
        angle = index[:, None] / np.power(10000.0, 2 * pair / dim)
        table = np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle))
    else:
        frequency = np.power(10000.0, -np.arange(dim // 4) / (dim // 4))
        slow, fast = (axis[:, None] * frequency for axis in np.divmod(index, rows if kind == "row first" else columns))
        first, second = (slow, fast) if kind == "row first" else (fast, slow)
        table = np.concatenate([np.sin(first), np.cos(first), np.sin(second), np.cos(second)], axis=1)
    return table.astype(np.float32).astype(np.float64)
