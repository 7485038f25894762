"""BEiT's naming of a ViT classifier, and PLSC's port of it.

Atten4Vis/CAE, BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch use it for fine-tuning and probing. The names are those
of facebookresearch/mae, but q and v have separate biases, and attention may have a table of relative positions.
"""

from __future__ import annotations

from collections.abc import Collection

from plsc_mae.weights.dialects.base import Dialect, Tensors
from plsc_mae.weights.dialects.facebook import foreign_name as facebook_name
from plsc_mae.weights.dialects.facebook import paddle_name


def foreign_name(name: str) -> str:
    """Translate our name to facebookresearch/mae's, and remove `rel_pos_bias.` from the names of a block."""
    return facebook_name(name).replace(".attn.rel_pos_bias.", ".attn.")


def _has_rows(tensors: Tensors, *, out_first: bool) -> bool:
    if not {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"} <= set(tensors):
        return False
    if tensors["blocks.0.attn.qkv.weight"].ndim != 2:
        return False
    rows, columns = tensors["blocks.0.attn.qkv.weight"].shape
    return rows > columns if out_first else columns > rows


def _holds(names: Collection[str]) -> bool:
    return "mask_token" not in names and "blocks.0.attn.q_bias" in names


BEIT = Dialect("beit", foreign_name, True, lambda tensors: _has_rows(tensors, out_first=True), holds=_holds)
PLSC_BEIT = Dialect(
    "plsc_beit",
    lambda name: paddle_name(foreign_name(name)),
    False,
    lambda tensors: _has_rows(tensors, out_first=False),
    holds=_holds,
)
