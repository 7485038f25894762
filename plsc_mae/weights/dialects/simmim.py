"""microsoft/SimMIM's ViT in pre-training. Its fine-tuned files have the names of the dialect `beit`.

The head is a 1x1 convolution there and a linear layer here. Files also contain the index into the table of relative
positions, which our network computes.
"""

from __future__ import annotations

from plsc_mae.weights.dialects.base import Array, Dialect, NumHeads, Tensors

_HEAD = "decoder.0.weight"
_INDEX = "relative_position_index"


def foreign_name(name: str) -> str:
    """Translate `decoder.bias` to `decoder.0.bias`, and remove `rel_pos_bias.` from the names of a block."""
    if name.startswith("decoder."):
        return name.replace("decoder.", "decoder.0.", 1)
    return name.replace(".attn.rel_pos_bias.", ".attn.")


def _recognizes(tensors: Tensors) -> bool:
    token, hidden = (tensors.get(f"encoder.{name}") for name in ("mask_token", "blocks.0.mlp.fc1.weight"))
    if token is None or hidden is None or token.ndim != 3 or hidden.ndim != 2:
        return False
    return hidden.shape[0] > hidden.shape[1]  # [out, in]


def _decode(tensors: Tensors, _heads: NumHeads) -> dict[str, Array]:
    decoded = {name: value for name, value in tensors.items() if not name.endswith(_INDEX)}
    if _HEAD in decoded:
        kernel = decoded[_HEAD]
        if kernel.ndim not in (2, 4) or kernel.shape[2:] not in ((), (1, 1)):
            raise ValueError(f"'{_HEAD}' has shape {list(kernel.shape)}, expected a 1x1 convolution")
        decoded[_HEAD] = kernel.reshape(kernel.shape[:2])
    return decoded


def _encode(arrays: Tensors, _heads: NumHeads) -> dict[str, Array]:
    return {name: value[:, :, None, None] if name == _HEAD else value for name, value in arrays.items()}


SIMMIM = Dialect("simmim", foreign_name, True, _recognizes, decode=_decode, encode=_encode)
