"""The masked autoencoder (He et al. 2022) of three implementations, from images and noise to the loss.

B batch, L patches, K visible patches, D encoder width, E decoder width, P patch size, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plsc_mae.parity.oracle.layers import (
    Array,
    Parameters,
    Positions,
    block,
    embed_patches,
    layer_norm,
    linear,
    patchify,
    position_table,
    stack,
    submodule,
    take,
)

FINAL_NORM_EPS = 1e-6
PIXEL_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MAEOptions:
    """Differences between the implementations; the defaults are those of facebookresearch/mae."""

    num_heads: int  # attention heads of the encoder
    decoder_num_heads: int  # attention heads of the decoder
    mask_ratio: float = 0.75  # fraction of hidden patches
    # "none" predicts plain pixels. The others normalize each patch: by its unbiased variance ("patch", MAE), by its
    # biased variance ("layernorm", MAE-priv), or per channel with eps outside the root ("channel", MAE-pytorch).
    pixel_norm: Literal["none", "patch", "layernorm", "channel"] = "none"
    # mean of each channel. `pixel_mean` and `pixel_std` undo the normalization of the images, so that targets are
    # pixels in [0, 1] (MAE-pytorch); None keeps the normalized pixels.
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None  # standard deviation of each channel
    # True orders predictions and targets by channel, row, column (MAE-priv), False by row, column, channel
    channels_first: bool = False
    class_token: bool = True  # True if the encoder has a class token
    # True if the decoder sees the class token. If False, the encoder drops it before its final norm.
    decoder_class_token: bool = True
    # kind of the position tables; "given" reads them from the parameters, as for trained positions
    positions: Positions = "column first"
    k_bias: bool = True  # True if keys have a bias
    bridge_bias: bool = True  # True if the linear layer from encoder to decoder has a bias
    norm_eps: float = 1e-6  # eps of the norms in blocks; the final norms always have 1e-6
    # rounding of K: int(L (1 - mask_ratio)) for "floor", L - int(L mask_ratio) for "ceil"
    visible: Literal["floor", "ceil"] = "floor"


# Options of each implementation, by the name of our method. In BUPT-PRIV/MAE-priv the class token is an option.
# MAE-priv and MAE-pytorch normalize targets by default.
_BEIT_STYLE: dict[str, Any] = {"k_bias": False, "decoder_class_token": False, "visible": "ceil"}
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "mae": {"pixel_norm": "patch"},
    "mae_priv": {**_BEIT_STYLE, "positions": "row first", "pixel_norm": "layernorm", "channels_first": True},
    "mae_pytorch": {
        **_BEIT_STYLE,
        "class_token": False,
        "positions": "sinusoid",
        "bridge_bias": False,
        "pixel_norm": "channel",
        "pixel_mean": (0.485, 0.456, 0.406),  # ImageNet's
        "pixel_std": (0.229, 0.224, 0.225),
    },
}
# Further parameters without weight decay, by method. One-dimensional parameters and biases never have it.
UNDECAYED = {"mae_priv": ("decoder.mask_token",), "mae_pytorch": ("decoder.mask_token",)}


def forward(parameters: Parameters, images: Array, noise: Array, options: MAEOptions) -> dict[str, Array]:
    """Hide patches, encode the visible ones, predict all patches, and compute the loss of the hidden ones.

    Args:
        parameters: parameters of the network.
        images: [B, C, H, W], normalized.
        noise: [B, L]; the K patches with the least noise stay visible. A mask with 1 for hidden also works as noise.
        options: options of the implementation.

    Returns:
        The output of every layer, in the order of computation: "encoder.embed", "encoder.blocks.0" ... and "latent"
        [B, K, D], "decoder.embed" and "decoder.blocks.0" ... [B, L, E], "pred" and "target" [B, L, P*P*C], "mask"
        [B, L] with 1 for hidden, and the scalar "loss". Stacks with a class token have one more token, the first.
    """
    patches = noise.shape[1]
    shuffle = np.argsort(noise, axis=1, kind="stable")
    restore = np.argsort(shuffle, axis=1)
    keep = count_visible(patches, options)
    grid = tuple(side // parameters["encoder.patch_embed.proj.weight"].shape[-1] for side in images.shape[2:])

    layers = encode(submodule(parameters, "encoder"), images, shuffle[:, :keep], grid, options)
    layers |= decode(submodule(parameters, "decoder"), layers["latent"], restore, grid, options)
    layers["target"] = pixel_target(images, parameters["encoder.patch_embed.proj.weight"].shape[-1], options)
    layers["mask"] = (restore >= keep).astype(np.float64)
    error = np.square(layers["pred"] - layers["target"]).mean(axis=-1)
    layers["loss"] = (error * layers["mask"]).sum() / layers["mask"].sum()
    return layers


def count_visible(patches: int, options: MAEOptions) -> int:
    """Return K, the number of visible ones among `patches` patches."""
    if options.visible == "floor":
        return int(patches * (1 - options.mask_ratio))
    return patches - int(options.mask_ratio * patches)


def encode(
    parameters: Parameters, images: Array, visible: npt.NDArray[np.int64], grid: tuple[int, ...], options: MAEOptions
) -> dict[str, Array]:
    """Run a ViT over the patches with the ids `visible` [B, K].

    The class token comes first. Its position embedding is zero unless positions are trained.

    Returns:
        "encoder.embed", "encoder.blocks.0" ... [B, 1 + K, D] (K without a class token) and "latent", without the class
        token if the decoder does not see it.
    """
    tokens = embed_patches(images, submodule(parameters, "patch_embed.proj"))
    leading = int(options.class_token)
    table = _table(parameters, tokens.shape[-1], grid, leading, options)
    x = take(tokens + table[leading:], visible)
    if options.class_token:
        cls = parameters["cls_token"] + table[:1]
        x = np.concatenate([np.broadcast_to(cls, (len(x), 1, x.shape[-1])), x], axis=1)

    layers = {"encoder.embed": x}
    for i, weights in enumerate(stack(parameters, "blocks")):
        x = block(x, weights, options.num_heads, k_bias=options.k_bias, eps=options.norm_eps)
        layers[f"encoder.blocks.{i}"] = x
    if options.class_token and not options.decoder_class_token:
        x = x[:, 1:]
    layers["latent"] = layer_norm(x, submodule(parameters, "norm"), FINAL_NORM_EPS)
    return layers


def decode(
    parameters: Parameters, latent: Array, restore: npt.NDArray[np.int64], grid: tuple[int, ...], options: MAEOptions
) -> dict[str, Array]:
    """Predict the pixels of all patches.

    Mask tokens are appended to the encoded patches, `restore` [B, L] puts all tokens into raster order, and the
    decoder's blocks and linear head follow.

    Returns:
        "decoder.embed", "decoder.blocks.0" ... [B, 1 + L, E] (L without a class token) and "pred" [B, L, P*P*C].
    """
    seen = linear(latent, submodule(parameters, "embed"), bias=options.bridge_bias)
    leading = int(options.class_token and options.decoder_class_token)
    cls, visible = seen[:, :leading], seen[:, leading:]
    batch, patches = restore.shape
    hidden = np.broadcast_to(parameters["mask_token"], (batch, patches - visible.shape[1], seen.shape[-1]))
    raster = take(np.concatenate([visible, hidden], axis=1), restore)
    x = np.concatenate([cls, raster], axis=1) + _table(parameters, seen.shape[-1], grid, leading, options)

    layers = {"decoder.embed": x}
    for i, weights in enumerate(stack(parameters, "blocks")):
        x = block(x, weights, options.decoder_num_heads, k_bias=options.k_bias, eps=options.norm_eps)
        layers[f"decoder.blocks.{i}"] = x
    normed = layer_norm(x, submodule(parameters, "norm"), FINAL_NORM_EPS)
    layers["pred"] = linear(normed, submodule(parameters, "pred"))[:, leading:]
    return layers


def pixel_target(images: Array, patch_size: int, options: MAEOptions) -> Array:
    """Return the target of every patch, [B, L, P*P*C]."""
    if options.pixel_mean is not None and options.pixel_std is not None:
        images = images * np.reshape(options.pixel_std, (-1, 1, 1)) + np.reshape(options.pixel_mean, (-1, 1, 1))
    patches = patchify(images, patch_size, channels_first=options.channels_first)
    if options.pixel_norm == "none":
        return patches
    pixels = patch_size * patch_size
    shape = (*patches.shape[:2], -1, pixels) if options.channels_first else (*patches.shape[:2], pixels, -1)
    by_channel = patches.reshape(shape)
    over: tuple[int, ...] = (2, 3)
    if options.pixel_norm == "channel":
        over = (3,) if options.channels_first else (2,)
    mean = by_channel.mean(axis=over, keepdims=True)
    variance = by_channel.var(axis=over, keepdims=True, ddof=0 if options.pixel_norm == "layernorm" else 1)
    if options.pixel_norm == "channel":
        deviation = np.sqrt(variance) + PIXEL_EPS
    else:
        deviation = np.sqrt(variance + PIXEL_EPS)
    return ((by_channel - mean) / deviation).reshape(patches.shape)


def _table(parameters: Parameters, dim: int, grid: tuple[int, ...], leading: int, options: MAEOptions) -> Array:
    """Return the position embeddings [leading + L, D]; leading tokens have zeros unless positions are "given"."""
    if options.positions == "given":
        return parameters["pos_embed"][0]
    table = position_table(options.positions, dim, (grid[0], grid[1]))
    return np.concatenate([np.zeros((leading, dim)), table])
