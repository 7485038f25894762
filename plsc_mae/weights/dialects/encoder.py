"""Infers the sizes of an encoder from its tensors in any dialect."""

from __future__ import annotations

from typing import Any

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.dialects.base import Array, Dialect, Tensors, count_blocks, tensor_of_rank
from plsc_mae.weights.dialects.cae import HEADS as CAE_HEADS
from plsc_mae.weights.dialects.facebook import HEADS as MAE_HEADS
from plsc_mae.weights.dialects.grids import prefix_positions, square_side

RELATIVE_TABLE = "relative_position_bias_table"


def relative_side(count: int) -> int | None:
    """Return the side, in patches, of the square grid of a relative position table with `count` rows.

    The result is None if no square grid has this number of rows.
    """
    side = square_side(count - 3)
    return None if side is None or side % 2 == 0 else (side + 1) // 2


def infer_encoder(tensors: Tensors, dialect: Dialect, path: str) -> dict[str, Any]:
    """Return arguments of `VisionTransformer` that fit an encoder's tensors; `positions` is not among them.

    `num_heads` becomes None unless there is a table of relative positions, there is a norm of queries, or the width is
    a published one. `img_size` becomes None unless there is a position table of a square grid. `prefix_positions`
    becomes None unless a table of absolute positions determines it.

    Raises:
        CheckpointError: the tensors contain no encoder, or one of them has an unexpected number of dimensions or is
            empty.
    """

    def find(name: str, ndim: int) -> Array | None:
        return tensor_of_rank(tensors, dialect.foreign_name(f"encoder.{name}"), ndim, path)

    kernel = find("patch_embed.proj.weight", 4)
    hidden = find("blocks.0.mlp.fc1.bias", 1)
    if kernel is None or hidden is None:
        raise CheckpointError(f"{path} contains no encoder; expected tensors of patch_embed and blocks")
    embed_dim, in_chans, patch_size, _ = kernel.shape
    own = find(f"blocks.0.attn.rel_pos_bias.{RELATIVE_TABLE}", 2)
    shared = find(f"rel_pos_bias.{RELATIVE_TABLE}", 2)
    relative = own if own is not None else shared
    class_token = find("cls_token", 3) is not None
    layer_scale = find("blocks.0.gamma_1", 1) is not None
    table = find("pos_embed", 3)
    side = None if relative is None else relative_side(len(relative))
    k_bias, query_norm = find("blocks.0.attn.q_bias", 1) is None, find("blocks.0.attn.q_norm.weight", 1)
    registers = find("register_tokens", 3)
    register_tokens, prefix = 0 if registers is None else registers.shape[1], None
    if table is not None:
        prefix = prefix_positions(table.shape[1], int(class_token), register_tokens)
        if class_token and prefix == 0 and not table[:, 0].any():  # computed, with a row for the class token
            prefix = None
        side = None if prefix is None else square_side(table.shape[1] - prefix)
    if query_norm is not None:
        heads = max(embed_dim // len(query_norm), 1)
    elif relative is not None:
        heads = relative.shape[1]
    else:  # CAE's networks have layer scales and no bias of keys
        heads = (CAE_HEADS if layer_scale and not k_bias else MAE_HEADS).get(embed_dim)
    return {
        "img_size": None if side is None else side * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": block_count(tensors, dialect),
        "num_heads": heads,
        "mlp_ratio": len(hidden) / embed_dim,
        "class_token": class_token,
        "layer_scale": 0.1 if layer_scale else 0.0,
        "k_bias": k_bias,
        "relative_positions": "per block" if own is not None else "none" if shared is None else "shared",
        "final_norm": find("norm.weight", 1) is not None,
        "qk_norm": query_norm is not None,
        "register_tokens": register_tokens,
        "prefix_positions": prefix,
    }


def block_count(tensors: Tensors, dialect: Dialect) -> int:
    """Return the number of the encoder's blocks whose tensors are in a file."""
    return count_blocks(tensors, dialect.foreign_name("encoder.blocks."))
