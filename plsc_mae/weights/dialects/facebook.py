"""facebookresearch/mae and PLSC, which has the same names but stores linear weights in Paddle's layout."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from plsc_mae.weights.dialects.base import Dialect, Tensors

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
    """Rename running statistics as in Paddle's batch norm, and keep other names."""
    return name.replace(".running_mean", "._mean").replace(".running_var", "._variance")


def _has_rows(tensors: Tensors, *, out_first: bool) -> bool:
    if not {_PATCH, _QKV, _QKV_BIAS} <= set(tensors) or tensors[_QKV].ndim != 2:
        return False
    rows, columns = tensors[_QKV].shape
    return rows == 3 * columns if out_first else columns == 3 * rows


def lacks(names: Collection[str], *parts: str) -> bool:
    """Return True if no name contains any of the parts."""
    return not any(part in name for name in names for part in parts)


def holds(names: Collection[str]) -> bool:
    """Return True if timm's ViT can have tensors of these names: a class token, and none of BEiT's additions."""
    return "cls_token" in names and lacks(names, ".q_bias", ".gamma_", "relative_position")


FACEBOOK = Dialect("facebook", foreign_name, True, lambda tensors: _has_rows(tensors, out_first=True), holds=holds)
PLSC = Dialect(
    "plsc",
    lambda name: paddle_name(foreign_name(name)),
    False,
    lambda tensors: _has_rows(tensors, out_first=False),
    holds=holds,
)
# facebookresearch/mae is built on timm, so their names are equal. Files of timm are detected as facebook; the separate
# dialect is for writing.
TIMM = replace(FACEBOOK, name="timm", key="", holds=lambda names: holds(names) and lacks(names, "head.0.", "head.1."))


def published_heads(name: str, width: int) -> int | None:
    """Return the number of heads of the attention `name` in the published network of that width; None if unknown."""
    return (DECODER_HEADS if name.startswith("decoder_") else HEADS).get(width)
