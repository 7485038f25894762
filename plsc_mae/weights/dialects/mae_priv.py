"""Pre-training files of BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch, which share one naming.

Their fine-tuned and probed networks have BEiT's names.
"""

from __future__ import annotations

from plsc_mae.weights.dialects.base import Dialect, Tensors

# Both code bases have q_bias and v_bias in their blocks. CAE's ports also have `encoder_to_decoder`, but no `decoder`.
_SHARED = {"mask_token", "encoder.patch_embed.proj.weight", "encoder_to_decoder.weight", "decoder.head.weight"}
_SHARED |= {"encoder.blocks.0.attn.q_bias"}
_PARTS = {
    "decoder.mask_token": "mask_token",
    "decoder.pos_embed": "decoder_pos_embed",
    "decoder.embed": "encoder_to_decoder",
    "decoder.pred": "decoder.head",
}
HEAD_DIM = 64  # channels per head in both decoders


def foreign_name(name: str) -> str:
    """Translate our name, such as `decoder.embed.weight` to `encoder_to_decoder.weight`; most names are equal."""
    for ours, theirs in _PARTS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name


def _recognizes(tensors: Tensors, *, bridge_bias: bool) -> bool:
    return set(tensors) >= _SHARED and ("encoder_to_decoder.bias" in tensors) == bridge_bias


MAE_PRIV = Dialect("mae_priv", foreign_name, True, lambda tensors: _recognizes(tensors, bridge_bias=True))
MAE_PYTORCH = Dialect("mae_pytorch", foreign_name, True, lambda tensors: _recognizes(tensors, bridge_bias=False))
