"""facebookresearch/mae, timm, and PLSC, which has Paddle's layout of linear weights and names of running statistics.

facebookresearch/mae is built on timm's ViT, so a plain ViT has one set of names. Files with parts that only newer ViTs
have (layer scale, normalized queries and keys, register tokens) are of the dialect `timm`. DINOv2 and DeiT III have the
same parts under slightly different names, which are read too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from plsc_mae.weights.dialects.base import Array, Dialect, NumHeads, Tensors

_DECODER = {
    "mask_token": "mask_token",
    "embed": "decoder_embed",
    "pos_embed": "decoder_pos_embed",
    "blocks": "decoder_blocks",
    "norm": "decoder_norm",
    "pred": "decoder_pred",
}
_PATCH = "patch_embed.proj.weight"
_QKV = "blocks.0.attn.qkv.weight"
_QKV_BIAS = "blocks.0.attn.qkv.bias"  # BEiT-style files have q_bias and v_bias instead
# {width: heads} of the published networks, including BUPT-PRIV/MAE-priv's; shapes do not determine the heads.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1664: 16}
DECODER_HEADS = {512: 16}
_NEWER = (".ls1.", ".gamma_1", ".q_norm.", "reg_token", "register_tokens")  # parts that only newer ViTs have


def foreign_name(name: str) -> str:
    """Translate our names, such as `encoder.norm.bias` to `norm.bias` or `decoder.pred.bias` to `decoder_pred.bias`."""
    part, _, rest = name.partition(".")
    if part == "encoder":
        return rest
    if part == "decoder":
        head, dot, tail = rest.partition(".")
        return _DECODER.get(head, f"decoder.{head}") + dot + tail
    return name


def paddle_name(name: str) -> str:
    """Return the name with running statistics named as in Paddle's batch norm; other names are unchanged."""
    return name.replace(".running_mean", "._mean").replace(".running_var", "._variance")


def _has_rows(tensors: Tensors, *, out_first: bool, bias: bool = True) -> bool:
    wanted = {_PATCH, _QKV, _QKV_BIAS} if bias else {_PATCH, _QKV}
    if not wanted <= set(tensors) or tensors[_QKV].ndim != 2:
        return False
    rows, columns = tensors[_QKV].shape
    return rows == 3 * columns if out_first else columns == 3 * rows


def lacks(names: Collection[str], *parts: str) -> bool:
    """Return True if no name contains any of the parts."""
    return not any(part in name for name in names for part in parts)


def holds(names: Collection[str]) -> bool:
    """Return True if the ViT of facebookresearch/mae can have tensors of these names.

    It has a class token, and none of the additions of BEiT and of newer ViTs.
    """
    return "cls_token" in names and lacks(names, ".q_bias", ".gamma_", "relative_position", *_NEWER)


FACEBOOK = Dialect(
    "facebook",
    foreign_name,
    True,
    lambda tensors: _has_rows(tensors, out_first=True) and lacks(tensors, *_NEWER),
    holds=holds,
)
PLSC = Dialect(
    "plsc",
    lambda name: paddle_name(foreign_name(name)),
    False,
    lambda tensors: _has_rows(tensors, out_first=False),
    holds=holds,
)

# Our names -> timm's.
_TIMM = {".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma", "register_tokens": "reg_token"}
# Blocks in chunks, blocks.CHUNK.NUMBER.REST, as facebookresearch/dinov2 saves them in training.
_CHUNKED = re.compile(r"^blocks\.\d+\.(?P<block>\d+\..+)$")


def timm_name(name: str) -> str:
    """Translate our name to facebookresearch/mae's, or to timm's for layer scales and register tokens."""
    return _newer_name(foreign_name(name))


def _newer_name(name: str) -> str:
    for ours, theirs in _TIMM.items():
        if name == ours or (ours.startswith(".") and name.endswith(ours)):
            return name.removesuffix(ours) + theirs
    return name


def _decode_timm(tensors: Tensors, _heads: NumHeads) -> dict[str, Array]:
    """Rename layer scales of DeiT III, and register tokens and chunked blocks of DINOv2, as timm names them."""
    return {_newer_name(_CHUNKED.sub(r"blocks.\g<block>", name)): value for name, value in tensors.items()}


def _recognizes_timm(tensors: Tensors) -> bool:
    """Return True for a ViT in timm's names.

    Its `qkv` may lack a bias, so that loaders can name what is missing, but not have a `q_bias` instead, as in BEiT.
    """
    chunked = {_CHUNKED.sub(r"blocks.\g<block>", name): value for name, value in tensors.items()}
    return _has_rows(chunked, out_first=True, bias="blocks.0.attn.q_bias" in chunked)


TIMM = replace(
    FACEBOOK,
    name="timm",
    foreign_name=timm_name,
    recognizes=_recognizes_timm,  # after `facebook`, which recognizes files without newer parts
    holds=lambda names: lacks(names, ".q_bias", "relative_position", "head.0.", "head.1."),
    newer_parts=True,
    key="",
    decode=_decode_timm,
    encode=lambda arrays, _heads: dict(arrays),
)


def published_heads(name: str, width: int) -> int | None:
    """Return the number of heads of the attention `name` in the published network of that width; None if unknown."""
    return (DECODER_HEADS if name.startswith("decoder_") else HEADS).get(width)
