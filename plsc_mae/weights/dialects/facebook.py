"""facebookresearch/mae, and PLSC, which kept its names but stores linear weights as Paddle does."""

from __future__ import annotations

from typing import Any

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.dialects.base import Dialect, Tensors, count_blocks

_DECODER = {
    "mask_token": "mask_token",
    "embed": "decoder_embed",
    "pos_embed": "decoder_pos_embed",
    "blocks": "decoder_blocks",
    "norm": "decoder_norm",
    "pred": "decoder_pred",
}
_QKV, _PATCH = "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"
_QKV_BIAS = "blocks.0.attn.qkv.bias"  # BEiT-style files have q_bias and v_bias instead
# Heads cannot be read off shapes; these are the published widths, those of BUPT-PRIV/MAE-priv too.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1664: 16}
_DECODER_HEADS = {512: 16}


def foreign_name(name: str) -> str:
    """Translate `encoder.norm.weight` to `norm.weight` and `decoder.pred.bias` to `decoder_pred.bias`."""
    part, _, rest = name.partition(".")
    if part == "encoder":
        return rest
    if part == "decoder":
        head, dot, tail = rest.partition(".")
        return _DECODER.get(head, f"decoder.{head}") + dot + tail
    return name


def paddle_name(name: str) -> str:
    """Call running statistics as Paddle's own batch norm does; the rest keeps its name."""
    return name.replace(".running_mean", "._mean").replace(".running_var", "._variance")


def _has_rows(tensors: Tensors, *, out_first: bool) -> bool:
    if not {_PATCH, _QKV, _QKV_BIAS} <= set(tensors):
        return False
    rows, columns = tensors[_QKV].shape
    return rows == 3 * columns if out_first else columns == 3 * rows


FACEBOOK = Dialect("facebook", foreign_name, True, lambda tensors: _has_rows(tensors, out_first=True))
PLSC = Dialect(
    "plsc", lambda name: paddle_name(foreign_name(name)), False, lambda tensors: _has_rows(tensors, out_first=False)
)


def infer_arguments(tensors: Tensors, path: str) -> dict[str, Any]:
    """Read the sizes of an MAE off its tensors, as `MaskedAutoencoder` arguments.

    The numbers of heads, which no shape tells, are None for widths that were not published, and those of the decoder
    are None for a file of an encoder alone.

    Raises:
        CheckpointError: the file has no position table, which tells the image size.
    """
    if "pos_embed" not in tensors:
        raise CheckpointError(f"{path} has no pos_embed, which tells the image size; expected a whole encoder")
    has_decoder = "decoder_embed.weight" in tensors and "mask_token" in tensors
    embed_dim, in_chans, patch_size, _ = tensors[_PATCH].shape
    decoder_dim: Any = tensors["mask_token"].shape[-1] if has_decoder else None
    rows = (tensors["pos_embed"].shape[1] - 1) ** 0.5
    return {
        "img_size": round(rows) * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": count_blocks(tensors, "blocks."),
        "num_heads": HEADS.get(embed_dim),
        "decoder_embed_dim": decoder_dim,
        "decoder_depth": count_blocks(tensors, "decoder_blocks.") if has_decoder else None,
        "decoder_num_heads": _DECODER_HEADS.get(decoder_dim) if has_decoder else None,
    }
