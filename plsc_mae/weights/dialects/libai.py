"""LiBai (projects/MAE, on OneFlow): MAE pre-training and ViT classifiers.

The base naming is facebookresearch/mae's. Differences:
- The rows of the attention projection are ordered by head, [heads, 3, D / heads]; in the base naming all rows of q come
  first, then k, then v.
- The layer norms of the blocks have an eps of 1e-5 (`--norm_eps 1e-5`).
- The norm after mean pooling is named `norm`, so a classifier's `fc_norm` is read and written under that name. A
  classifier of the class token cannot be written.
The conversion follows utils/weight_convert.py of the project. LiBai's folders of OneFlow files can be read directly.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from plsc_mae.errors import ConfigError
from plsc_mae.weights.dialects.base import Array, NumHeads, Tensors, renamed
from plsc_mae.weights.dialects.facebook import FACEBOOK, holds, lacks

_NETWORK = {"blocks": "blocks", "decoder_blocks": "decoder_blocks"}
_BLOCK = {
    "self_attention.query_key_value": "attn.qkv",
    "self_attention.dense": "attn.proj",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "mlp.dense_h_to_4h": "mlp.fc1",
    "mlp.dense_4h_to_h": "mlp.fc2",
}


def _decode(tensors: Tensors, heads: NumHeads) -> dict[str, Array]:
    decoded: dict[str, Array] = {}
    for name, value in tensors.items():
        ours = renamed(name, _NETWORK, _BLOCK)
        if "head.weight" in tensors and ours.startswith("norm."):
            ours = f"fc_{ours}"
        decoded[ours] = value if ours == name else _regrouped(ours, value, heads, by_head=True)
    return decoded


def _holds(names: Collection[str]) -> bool:
    class_token_classified = "head.weight" in names and "norm.weight" in names
    return holds(names) and lacks(names, "head.0.", "head.1.") and not class_token_classified


def _encode(arrays: Tensors, heads: NumHeads) -> dict[str, Array]:
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    grouped = {name: _regrouped(name, value, heads, by_head=False) for name, value in arrays.items()}
    named = {name.replace("fc_norm.", "norm."): value for name, value in grouped.items()}
    return {renamed(name, _NETWORK, block): value for name, value in named.items()}


def _regrouped(name: str, value: Array, heads: NumHeads, *, by_head: bool) -> Array:
    """Reorder the rows of an attention projection: from [heads, 3, ...] to [3, heads, ...] if `by_head`, else back.

    Other tensors are returned unchanged.
    """
    if ".attn.qkv." not in name:
        return value
    count = heads(name, len(value) // 3)
    if count is None:
        raise ConfigError(
            f"cannot reorder LiBai's rows of {name}: the number of heads is unknown, because no published network has "
            f"the width {len(value) // 3}; load the file into a network of that size"
        )
    groups = (count, 3) if by_head else (3, count)
    return np.swapaxes(value.reshape(*groups, -1, *value.shape[1:]), 0, 1).reshape(value.shape)


LIBAI = replace(
    FACEBOOK,
    name="libai",
    recognizes=lambda tensors: (
        {"patch_embed.proj.weight", "blocks.0.self_attention.query_key_value.weight"} <= set(tensors)
    ),
    holds=_holds,
    norm_eps=1e-5,
    decode=_decode,
    encode=_encode,
)
