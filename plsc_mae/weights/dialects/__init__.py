"""Dialects: the tensor namings of plsc_mae and of other code bases.

A file's dialect is detected from the names and shapes of its tensors, never from the file name.
"""

from __future__ import annotations

from plsc_mae.errors import ConfigError
from plsc_mae.weights.dialects.base import Dialect, Tensors
from plsc_mae.weights.dialects.beit import BEIT, PLSC_BEIT
from plsc_mae.weights.dialects.cae import CAE, CAE_BETWEEN, CAE_OLD, PLSC_CAE
from plsc_mae.weights.dialects.facebook import FACEBOOK, PLSC, TIMM
from plsc_mae.weights.dialects.huggingface import HUGGINGFACE
from plsc_mae.weights.dialects.libai import LIBAI
from plsc_mae.weights.dialects.mae_priv import MAE_PRIV, MAE_PYTORCH
from plsc_mae.weights.dialects.mmpretrain import MMPRETRAIN
from plsc_mae.weights.dialects.simmim import SIMMIM

# One tensor outside the encoder for each of our networks: MAE, CAE, SimMIM, classifier, probe with batch norm.
_BEYOND_THE_ENCODER = {"decoder.embed.weight", "regressor.norm.weight", "decoder.weight"}
_BEYOND_THE_ENCODER |= {"head.weight", "head.1.weight"}
NATIVE = Dialect(
    "plsc_mae",
    foreign_name=lambda name: name,
    transposes_linear=False,
    newer_parts=True,
    recognizes=lambda tensors: (
        "encoder.patch_embed.proj.weight" in tensors and not _BEYOND_THE_ENCODER.isdisjoint(tensors)
    ),
)
_CAES = (CAE_BETWEEN, CAE, CAE_OLD, PLSC_CAE)
_ALL = (NATIVE, FACEBOOK, PLSC, TIMM, HUGGINGFACE, MMPRETRAIN, LIBAI, *_CAES, BEIT, PLSC_BEIT, MAE_PRIV, MAE_PYTORCH)
DIALECTS = {dialect.name: dialect for dialect in (*_ALL, SIMMIM)}


def find_dialect(name: str) -> Dialect:
    """Return the dialect called `name`.

    Raises:
        ConfigError: no dialect has that name.
    """
    if name not in DIALECTS:
        raise ConfigError(f"unknown dialect '{name}'; known: {', '.join(DIALECTS)}")
    return DIALECTS[name]


def detect(tensors: Tensors) -> str:
    """Return the name of the first dialect that recognizes the tensors, or an empty string."""
    return next((dialect.name for dialect in DIALECTS.values() if dialect.recognizes(tensors)), "")
