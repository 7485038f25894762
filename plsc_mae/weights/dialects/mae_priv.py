"""Pre-training files of BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch, which share one naming: their encoders.

What they fine-tune and probe has BEiT's names.
"""

from __future__ import annotations

from plsc_mae.weights.dialects.base import Dialect, Tensors

# Both have q_bias and v_bias in their blocks. CAE's ports have an `encoder_to_decoder` too, and no `decoder`.
_SHARED = {"mask_token", "encoder.patch_embed.proj.weight", "encoder_to_decoder.weight", "decoder.head.weight"}


def _recognizes(tensors: Tensors, *, bridge_bias: bool) -> bool:
    return set(tensors) >= _SHARED and ("encoder_to_decoder.bias" in tensors) == bridge_bias


MAE_PRIV = Dialect("mae_priv", lambda name: name, True, lambda tensors: _recognizes(tensors, bridge_bias=True))
MAE_PYTORCH = Dialect("mae_pytorch", lambda name: name, True, lambda tensors: _recognizes(tensors, bridge_bias=False))
