"""The context autoencoder (Chen et al. 2022), from images and a mask to both losses.

B batch, L patches, V visible patches, M hidden patches, E encoder width, D width of regressor and decoder, K classes,
C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plsc_mae.parity.oracle.layers import (
    Array,
    Parameters,
    Positions,
    attention,
    block,
    cross_entropy,
    embed_patches,
    layer_norm,
    linear,
    mlp,
    position_table,
    stack,
    submodule,
    take,
)


@dataclass(frozen=True, kw_only=True)
class CAEOptions:
    """Options of a context autoencoder that its parameters do not determine."""

    num_heads: int  # attention heads of the encoder
    decoder_num_heads: int  # attention heads of regressor and decoder
    align_loss_weight: float = 2.0  # factor of the alignment loss
    # kind of the position tables; "given" reads them from the parameters, as for trained positions
    positions: Positions = "row first"
    norm_eps: float = 1e-6  # eps of every layer norm


def forward(
    parameters: Parameters,
    images: Array,
    mask: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    options: CAEOptions,
    target: Array | None = None,
) -> dict[str, Array]:
    """Encode the visible patches, predict and classify the latents of the hidden ones, and compute both losses.

    Args:
        parameters: parameters of the network.
        images: [B, C, H, W], normalized.
        mask: [B, L], True for hidden; every image has the same number of hidden patches.
        labels: classes [B*M] of the hidden patches, in raster order, image by image.
        options: options of the network.
        target: alignment target [B, M, D]. By default it is the encoding of the hidden patches. The network
            back-propagates no gradient through it, so a caller that differentiates the loss numerically passes a
            constant target.

    Returns:
        The output of every layer, in the order of computation: "encoder.embed", "encoder.blocks.0" ... and
        "encoder.norm" [B, 1 + V, E]; "regressor.blocks.0" ..., "latent" and, if the decoder has blocks, "decoder.embed"
        and "decoder.blocks.0" ... [B, M, D]; "logits" [B*M, K]; unless `target` is given, "alignment.embed" and
        "alignment.blocks.0" ... [B, 1 + M, E]; "alignment.target" [B, M, D]; and the scalars "loss_main", "loss_align"
        (weighted) and "loss".
    """
    order = np.argsort(mask, axis=1, kind="stable")
    visible, hidden = np.split(order, [int((~mask[0]).sum())], axis=1)
    grid = tuple(side // parameters["encoder.patch_embed.proj.weight"].shape[-1] for side in images.shape[2:])

    encoder = submodule(parameters, "encoder")
    layers = encode(encoder, images, visible, grid, options)
    context = bridge(parameters, layers["encoder.norm"][:, 1:], options)
    table = _decoder_table(parameters, context.shape[-1], grid, options)
    query_pos, context_pos = table[hidden], table[visible]
    queries = np.broadcast_to(parameters["mask_token"], query_pos.shape)
    layers |= regress(submodule(parameters, "regressor"), queries, query_pos, context, context_pos, options)
    layers |= decode(submodule(parameters, "decoder"), layers["latent"], query_pos, options)

    if target is None:  # the alignment encoder is a moving average of the encoder, or the encoder itself
        aligned = encode(submodule(parameters, "alignment_encoder") or encoder, images, hidden, grid, options)
        layers |= {name.replace("encoder.", "alignment."): value for name, value in aligned.items()}
        target = bridge(parameters, layers.pop("alignment.norm")[:, 1:], options)
    layers["alignment.target"] = target

    layers["loss_main"] = cross_entropy(layers["logits"], labels)
    distance = np.square(layers["latent"] - layers["alignment.target"]).mean()
    layers["loss_align"] = options.align_loss_weight * distance
    layers["loss"] = layers["loss_main"] + layers["loss_align"]
    return layers


def encode(
    parameters: Parameters, images: Array, chosen: npt.NDArray[np.int64], grid: tuple[int, ...], options: CAEOptions
) -> dict[str, Array]:
    """Run a ViT over the patches with the ids `chosen` [B, N].

    The class token comes first. Its position embedding is zero unless positions are trained.

    Returns:
        "encoder.embed", "encoder.blocks.0" ... and "encoder.norm", each [B, 1 + N, E].
    """
    tokens = embed_patches(images, submodule(parameters, "patch_embed.proj"))
    table = _table(parameters, "pos_embed", tokens.shape[-1], grid, options)
    cls = parameters["cls_token"] + table[:1]
    x = take(tokens + table[1:], chosen)
    x = np.concatenate([np.broadcast_to(cls, (len(x), 1, x.shape[-1])), x], axis=1)

    layers = {"encoder.embed": x}
    for i, weights in enumerate(stack(parameters, "blocks")):
        x = block(x, weights, options.num_heads, k_bias=False, eps=options.norm_eps)
        layers[f"encoder.blocks.{i}"] = x
    layers["encoder.norm"] = layer_norm(x, submodule(parameters, "norm"), options.norm_eps)
    return layers


def bridge(parameters: Parameters, x: Array, options: CAEOptions) -> Array:
    """Map [B, N, E] to [B, N, D] by a linear layer and a norm; return `x` unchanged if the network has no bridge."""
    if "bridge.weight" not in parameters:
        return x
    mapped = linear(x, submodule(parameters, "bridge"))
    return layer_norm(mapped, submodule(parameters, "bridge_norm"), options.norm_eps)


def regress(
    parameters: Parameters, x: Array, query_pos: Array, context: Array, context_pos: Array, options: CAEOptions
) -> dict[str, Array]:
    """Predict the latents of the hidden patches from those of the visible patches.

    Args:
        parameters: parameters of the regressor.
        x: one mask token per hidden patch, [B, M, D].
        query_pos: position embeddings of the hidden patches, [B, M, D].
        context: latents of the visible patches, [B, V, D].
        context_pos: position embeddings of the visible patches, [B, V, D].
        options: options of the network.

    Returns:
        "regressor.blocks.0" ... and "latent", each [B, M, D].
    """
    layers = {}
    for i, weights in enumerate(stack(parameters, "blocks")):
        x = regressor_block(x, query_pos, context, context_pos, weights, options)
        layers[f"regressor.blocks.{i}"] = x
    layers["latent"] = layer_norm(x, submodule(parameters, "norm"), options.norm_eps)
    return layers


def regressor_block(
    x: Array, query_pos: Array, context: Array, context_pos: Array, parameters: Parameters, options: CAEOptions
) -> Array:
    """Apply cross-attention from the hidden patches to all patches, then an MLP; see `regress` for the shapes.

    The residual of the MLP starts from the normalized stream, unlike in a pre-norm block. Position embeddings are added
    to queries and keys, not to values. Keys have no bias.
    """

    def norm(name: str, tokens: Array) -> Array:
        return layer_norm(tokens, submodule(parameters, name), options.norm_eps)

    tokens = np.concatenate([context, x], axis=1)
    positions = np.concatenate([context_pos, query_pos], axis=1)
    attn = submodule(parameters, "cross_attn")
    q = norm("norm_q", x + query_pos) @ attn["q.weight"] + attn["q_bias"]
    k = norm("norm_k", tokens + positions) @ attn["k.weight"]
    v = norm("norm_v", tokens) @ attn["v.weight"] + attn["v_bias"]
    attended = linear(attention(q, k, v, options.decoder_num_heads), submodule(attn, "proj"))
    x = norm("norm2", x + parameters["gamma_1"] * attended)
    return x + parameters["gamma_2"] * mlp(x, submodule(parameters, "mlp"))


def decode(parameters: Parameters, latent: Array, query_pos: Array, options: CAEOptions) -> dict[str, Array]:
    """Classify the predicted latents [B, M, D]; a decoder without blocks consists of its head only (PLSC).

    Returns:
        "decoder.embed" and "decoder.blocks.0" ... [B, M, D] if there are blocks, and "logits" [B*M, K].
    """
    layers: dict[str, Array] = {}
    x = latent
    if blocks := stack(parameters, "blocks"):
        layers["decoder.embed"] = x = latent + query_pos
        for i, weights in enumerate(blocks):
            x = block(x, weights, options.decoder_num_heads, k_bias=False, eps=options.norm_eps)
            layers[f"decoder.blocks.{i}"] = x
        x = layer_norm(x, submodule(parameters, "norm"), options.norm_eps)
    layers["logits"] = linear(x, submodule(parameters, "head")).reshape(-1, parameters["head.bias"].size)
    return layers


def _table(parameters: Parameters, name: str, dim: int, grid: tuple[int, ...], options: CAEOptions) -> Array:
    """Return the position embeddings [1 + L, D]; the class token's is zero unless `options.positions` is "given"."""
    if options.positions == "given":
        return parameters[name][0]
    return np.concatenate([np.zeros((1, dim)), position_table(options.positions, dim, (grid[0], grid[1]))])


def _decoder_table(parameters: Parameters, dim: int, grid: tuple[int, ...], options: CAEOptions) -> Array:
    """Return the position embeddings [L, D] of regressor and decoder, which default to the encoder's."""
    name = "rd_pos_embed" if "rd_pos_embed" in parameters else "encoder.pos_embed"
    return _table(parameters, name, dim, grid, options)[1:]
