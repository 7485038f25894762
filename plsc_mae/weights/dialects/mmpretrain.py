"""OpenMMLab's mmpretrain (and mmcls, mmselfsup): MAE pre-training and ViT classifiers.

Only the names differ from the base naming, which is facebookresearch/mae's. A classifier of the mean of the patches has
a `LinearClsHead` there (`head.fc`), one of the class token a `VisionTransformerClsHead` (`head.layers.head`).
"""

from __future__ import annotations

from dataclasses import replace

from plsc_mae.weights.dialects.base import Array, NumHeads, Tensors, renamed
from plsc_mae.weights.dialects.facebook import FACEBOOK, holds, lacks, timm_name

_NETWORK = {
    "backbone.patch_embed.projection": "patch_embed.proj",
    "backbone.layers": "blocks",
    "backbone.ln1": "norm",
    "backbone.ln2": "fc_norm",
    "backbone.cls_token": "cls_token",
    "backbone.pos_embed": "pos_embed",
    "neck.decoder_blocks": "decoder_blocks",
    "neck.ln1": "decoder_norm",
    "neck.mask_token": "mask_token",
    "neck.decoder_pos_embed": "decoder_pos_embed",
    "neck.decoder_embed": "decoder_embed",
    "neck.decoder_pred": "decoder_pred",
    "head.fc": "head",
}
_TOKEN_HEAD = "head.layers.head"
_BLOCK = {"ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2", "ln1": "norm1", "ln2": "norm2"}
_BLOCK |= {"attn.gamma1.weight": "ls1.gamma", "ffn.gamma2.weight": "ls2.gamma"}  # of newer ViTs, read only


def _decode(tensors: Tensors, _heads: NumHeads) -> dict[str, Array]:
    return {renamed(name, {**_NETWORK, _TOKEN_HEAD: "head"}, _BLOCK): value for name, value in tensors.items()}


def _encode(arrays: Tensors, _heads: NumHeads) -> dict[str, Array]:
    network = {ours: theirs for theirs, ours in _NETWORK.items()}
    if "fc_norm.weight" not in arrays:
        network["head"] = _TOKEN_HEAD
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    return {renamed(name, network, block): value for name, value in arrays.items()}


MMPRETRAIN = replace(
    FACEBOOK,
    name="mmpretrain",
    foreign_name=timm_name,
    recognizes=lambda tensors: (
        {"backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"} <= set(tensors)
    ),
    holds=lambda names: holds(names) and lacks(names, "head.0.", "head.1."),
    key="state_dict",
    decode=_decode,
    encode=_encode,
)
