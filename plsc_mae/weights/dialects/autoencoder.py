"""Infers the sizes of a masked autoencoder from its tensors in any dialect."""

from __future__ import annotations

from typing import Any

from plsc_mae.weights.dialects.base import Dialect, Tensors, count_blocks, tensor_of_rank
from plsc_mae.weights.dialects.encoder import infer_encoder
from plsc_mae.weights.dialects.facebook import DECODER_HEADS
from plsc_mae.weights.dialects.mae_priv import HEAD_DIM

_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")


def infer_arguments(tensors: Tensors, dialect: Dialect, path: str) -> dict[str, Any]:
    """Return the arguments of `MaskedAutoencoder` that fit a network's tensors.

    Values that the tensors do not determine become None: a number of heads if no published network has the width
    (decoders of MAE-priv and MAE-pytorch always have heads of 64 channels), the decoder's sizes if the file has an
    encoder only, and `img_size` if the file has no position table of a square grid (MAE-pytorch's files have no table).

    Raises:
        CheckpointError: the tensors contain no encoder, or one of them has an unexpected number of dimensions or is
            empty.
    """
    encoder = infer_encoder(tensors, dialect, path)
    token = None  # an encoder alone may have a mask token too, of any shape (DINOv2)
    if dialect.foreign_name("decoder.embed.weight") in tensors:
        token = tensor_of_rank(tensors, dialect.foreign_name("decoder.mask_token"), 3, path)
    has_decoder = token is not None
    width: Any = None if token is None else token.shape[-1]
    heads = DECODER_HEADS.get(width) if encoder["k_bias"] else width and max(width // HEAD_DIM, 1)
    return {
        **{name: encoder[name] for name in _OPTIONS},
        "class_token": encoder["class_token"],
        "decoder_embed_dim": width,
        "decoder_depth": count_blocks(tensors, dialect.foreign_name("decoder.blocks.")) if has_decoder else None,
        "decoder_num_heads": heads,
    }
