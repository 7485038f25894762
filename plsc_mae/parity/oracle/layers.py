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


def below(parameters: Parameters, prefix: str) -> dict[str, Array]:
    """The parameters of a part: those whose names start with `prefix` and a dot, without these."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in parameters.items() if name.startswith(start)}


def stack(parameters: Parameters, prefix: str) -> list[dict[str, Array]]:
    """The parameters of `prefix.0`, `prefix.1` and so on, as long as there are any."""
    blocks: list[dict[str, Array]] = []
    while block := below(parameters, f"{prefix}.{len(blocks)}"):
        blocks.append(block)
    return blocks


def linear(x: Array, parameters: Parameters, *, bias: bool = True) -> Array:
    """X W + b."""
    y = x @ parameters["weight"]
    return y + parameters["bias"] if bias else y


def layer_norm(x: Array, parameters: Parameters, eps: float) -> Array:
    """Standardize the last axis by its biased variance, eps inside the root; then scale and shift."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centered).mean(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + eps) * parameters["weight"] + parameters["bias"]


def erf(x: Array) -> Array:
    """The error function by the C library's, within a unit in the last place of float64."""
    values = np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size)
    return values.reshape(x.shape)


def gelu(x: Array) -> Array:
    """X times the normal distribution function of x, exactly (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def cross_entropy(logits: Array, labels: npt.NDArray[np.int64]) -> Array:
    """Mean of -log softmax(logits)[label] over rows [N, K]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


def attention(q: Array, k: Array, v: Array, num_heads: int) -> Array:
    """softmax(q k^T / sqrt(D / H)) v in every head: [B, M, D], [B, N, D], [B, N, D] -> [B, M, D]."""

    def heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)  # [B, H, N, D/H]

    scores = heads(q) @ heads(k).transpose(0, 1, 3, 2) * (q.shape[-1] // num_heads) ** -0.5
    mixed = softmax(scores) @ heads(v)
    return mixed.transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1)


def self_attention(x: Array, parameters: Parameters, num_heads: int, *, k_bias: bool) -> Array:
    """Attention of all tokens to all. Columns of the weight are those of q, then k, then v, each head by head.

    Without a bias of the keys there are a bias of q and one of v, as BEiT has them.
    """
    if k_bias:
        bias = parameters["qkv.bias"]
    else:
        bias = np.concatenate([parameters["q_bias"], np.zeros_like(parameters["q_bias"]), parameters["v_bias"]])
    q, k, v = np.split(x @ parameters["qkv.weight"] + bias, 3, axis=-1)
    return linear(attention(q, k, v, num_heads), below(parameters, "proj"))


def mlp(x: Array, parameters: Parameters) -> Array:
    """Two linear layers with a GELU between them."""
    return linear(gelu(linear(x, below(parameters, "fc1"))), below(parameters, "fc2"))


def block(x: Array, parameters: Parameters, num_heads: int, *, k_bias: bool, eps: float) -> Array:
    """A pre-norm block, with layer scale where it has one: x += attention(norm1(x)); x += mlp(norm2(x))."""
    normed = layer_norm(x, below(parameters, "norm1"), eps)
    attended = self_attention(normed, below(parameters, "attn"), num_heads, k_bias=k_bias)
    x = x + parameters.get("gamma_1", np.ones(1)) * attended
    transformed = mlp(layer_norm(x, below(parameters, "norm2"), eps), below(parameters, "mlp"))
    return x + parameters.get("gamma_2", np.ones(1)) * transformed


def patchify(images: Array, patch_size: int, *, channels_first: bool = False) -> Array:
    """Cut images [B, C, H, W] into patches [B, L, P*P*C] in raster order; a patch runs by row, column, channel.

    With `channels_first` it runs by channel, row, column.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    order = (0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)
    return cut.transpose(order).reshape(batch, rows * columns, -1)


def embed_patches(images: Array, parameters: Parameters) -> Array:
    """The convolution whose stride is its kernel, as one product per patch: [B, C, H, W] -> [B, L, D]."""
    kernel = parameters["weight"]
    pixels = patchify(images, kernel.shape[-1], channels_first=True)
    return pixels @ kernel.reshape(len(kernel), -1).T + parameters["bias"]


def take(x: Array, ids: npt.NDArray[np.int64]) -> Array:
    """Pick tokens image by image: [B, N, D] and [B, M] -> [B, M, D]."""
    return np.take_along_axis(x, ids[..., None], axis=1)


def position_table(kind: Positions, dim: int, grid: tuple[int, int]) -> Array:
    """A table [L, D] of fixed positions, rounded to float32 as every implementation stores it.

    Two-dimensional tables give half of the channels to the row and half to the column, each half sines, then cosines,
    of position * 10000^-(i / (D/4)); "sinusoid" alternates sine and cosine of the raster index (Vaswani et al. 2017).
    """
    rows, columns = grid
    index = np.arange(rows * columns, dtype=np.float64)
    if kind == "sinusoid":
        pair = np.arange(dim) // 2
        angle = index[:, None] / np.power(10000.0, 2 * pair / dim)
        table = np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle))
    else:
        frequency = np.power(10000.0, -np.arange(dim // 4) / (dim // 4))
        row, column = (axis[:, None] * frequency for axis in np.divmod(index, columns))
        first, second = (row, column) if kind == "row first" else (column, row)
        table = np.concatenate([np.sin(first), np.cos(first), np.sin(second), np.cos(second)], axis=1)
    return table.astype(np.float32).astype(np.float64)
