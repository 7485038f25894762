"""The context autoencoder (Chen et al. 2022), from images and a mask to both losses.

B batch, L patches, V visible and M hidden ones, C width of the encoder, D of regressor and decoder, K classes.
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
    below,
    block,
    cross_entropy,
    embed_patches,
    layer_norm,
    linear,
    mlp,
    position_table,
    stack,
    take,
)


@dataclass(frozen=True, kw_only=True)
class CAEOptions:
    """The options of a network that its parameters do not show.

    Attributes:
        num_heads: of the encoder.
        decoder_num_heads: of regressor and decoder.
        align_loss_weight: of the alignment loss.
        positions: kind of the tables; "given" takes those among the parameters, as trained ones.
        norm_eps: of every layer norm.
    """

    num_heads: int
    decoder_num_heads: int
    align_loss_weight: float = 2.0
    positions: Positions = "row first"
    norm_eps: float = 1e-6


def forward(
    parameters: Parameters,
    images: Array,
    mask: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    options: CAEOptions,
    target: Array | None = None,
) -> dict[str, Array]:
    """Encode the visible patches, regress and classify the hidden ones, and compare them with their own encoding.

    Args:
        parameters: of the network.
        images: [B, C, H, W], normalized.
        mask: [B, L], True = hidden; every image hides the same number.
        labels: classes [B*M] of the hidden patches, in raster order, image by image.
        options: see there.
        target: the alignment target; None computes it from these parameters. It has no gradient, so finite differences
            of the loss must hold it constant.

    Returns:
        What the network computes, in its order: "encoder.embed", "encoder.blocks.0" ..., "encoder.norm",
        "regressor.blocks.0" ..., "latent", "decoder.embed", "decoder.blocks.0" ..., "logits" [B*M, K],
        "alignment.embed", "alignment.blocks.0" ..., "alignment.target", "loss_main", "loss_align" (weighted), "loss".
    """
    order = np.argsort(mask, axis=1, kind="stable")
    visible, hidden = np.split(order, [int((~mask[0]).sum())], axis=1)
    grid = tuple(side // parameters["encoder.patch_embed.proj.weight"].shape[-1] for side in images.shape[2:])

    encoder = below(parameters, "encoder")
    layers = encode(encoder, images, visible, grid, options)
    context = bridge(parameters, layers["encoder.norm"][:, 1:], options)
    table = _decoder_table(parameters, context.shape[-1], grid, options)
    here, there = table[hidden], table[visible]
    queries = np.broadcast_to(parameters["mask_token"], here.shape)
    layers |= regress(below(parameters, "regressor"), queries, here, context, there, options)
    layers |= decode(below(parameters, "decoder"), layers["latent"], here, options)

    if target is None:  # by the moving average of the encoder if there is one, else by the encoder
        aligned = encode(below(parameters, "alignment_encoder") or encoder, images, hidden, grid, options)
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
    """Run a ViT over the chosen patches [B, N]; the class token comes first, with a position only if it is trained."""
    tokens = embed_patches(images, below(parameters, "patch_embed.proj"))
    table = _table(parameters, "pos_embed", tokens.shape[-1], grid, options)
    cls = parameters["cls_token"] + table[:1]
    x = take(tokens + table[1:], chosen)
    x = np.concatenate([np.broadcast_to(cls, (len(x), 1, x.shape[-1])), x], axis=1)

    layers = {"encoder.embed": x}
    for i, weights in enumerate(stack(parameters, "blocks")):
        x = block(x, weights, options.num_heads, k_bias=False, eps=options.norm_eps)
        layers[f"encoder.blocks.{i}"] = x
    layers["encoder.norm"] = layer_norm(x, below(parameters, "norm"), options.norm_eps)
    return layers


def bridge(parameters: Parameters, x: Array, options: CAEOptions) -> Array:
    """Map the encoder's width to the regressor's by a linear layer and a norm, if they differ."""
    if "bridge.weight" not in parameters:
        return x
    return layer_norm(linear(x, below(parameters, "bridge")), below(parameters, "bridge_norm"), options.norm_eps)


def regress(
    parameters: Parameters, x: Array, here: Array, context: Array, there: Array, options: CAEOptions
) -> dict[str, Array]:
    """Predict the hidden patches' representations from the visible ones'.

    Args:
        parameters: of the regressor.
        x: [B, M, D] one mask token per hidden patch.
        here: positions of the hidden patches, [B, M, D].
        context: representations of the visible patches, [B, V, D].
        there: their positions, [B, V, D].
        options: see there.
    """
    layers = {}
    for i, weights in enumerate(stack(parameters, "blocks")):
        x = regressor_block(x, here, context, there, weights, options)
        layers[f"regressor.blocks.{i}"] = x
    layers["latent"] = layer_norm(x, below(parameters, "norm"), options.norm_eps)
    return layers


def regressor_block(
    x: Array, here: Array, context: Array, there: Array, parameters: Parameters, options: CAEOptions
) -> Array:
    """Attend from the hidden patches to all; the normed stream then replaces the stream, unlike in a pre-norm block.

    Queries and keys know their positions, values do not; keys have no bias.
    """

    def norm(name: str, tokens: Array) -> Array:
        return layer_norm(tokens, below(parameters, name), options.norm_eps)

    everything = np.concatenate([context, x], axis=1)
    places = np.concatenate([there, here], axis=1)
    attn = below(parameters, "cross_attn")
    q = norm("norm_q", x + here) @ attn["q.weight"] + attn["q_bias"]
    k = norm("norm_k", everything + places) @ attn["k.weight"]
    v = norm("norm_v", everything) @ attn["v.weight"] + attn["v_bias"]
    attended = linear(attention(q, k, v, options.decoder_num_heads), below(attn, "proj"))
    x = norm("norm2", x + parameters["gamma_1"] * attended)
    return x + parameters["gamma_2"] * mlp(x, below(parameters, "mlp"))


def decode(parameters: Parameters, latent: Array, here: Array, options: CAEOptions) -> dict[str, Array]:
    """Classify the predicted representations; a decoder without blocks is its head alone (PLSC)."""
    layers: dict[str, Array] = {}
    x = latent
    if blocks := stack(parameters, "blocks"):
        layers["decoder.embed"] = x = latent + here
        for i, weights in enumerate(blocks):
            x = block(x, weights, options.decoder_num_heads, k_bias=False, eps=options.norm_eps)
            layers[f"decoder.blocks.{i}"] = x
        x = layer_norm(x, below(parameters, "norm"), options.norm_eps)
    layers["logits"] = linear(x, below(parameters, "head")).reshape(-1, parameters["head.bias"].size)
    return layers


def _table(parameters: Parameters, name: str, dim: int, grid: tuple[int, ...], options: CAEOptions) -> Array:
    """Return positions [1 + L, D], with zeros for the class token."""
    if options.positions == "given":
        return parameters[name][0]
    return np.concatenate([np.zeros((1, dim)), position_table(options.positions, dim, (grid[0], grid[1]))])


def _decoder_table(parameters: Parameters, dim: int, grid: tuple[int, ...], options: CAEOptions) -> Array:
    """Return positions [L, D] for regressor and decoder: their own, or else the encoder's."""
    name = "rd_pos_embed" if "rd_pos_embed" in parameters else "encoder.pos_embed"
    return _table(parameters, name, dim, grid, options)[1:]
