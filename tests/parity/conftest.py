"""Fixtures that convert the weights of original implementations for the oracle."""

from __future__ import annotations

import re

import numpy as np
import pytest

# Names in facebookresearch/mae, MAE-priv and MAE-pytorch -> our names.
MAE_NAMES = (
    (r"^decoder_(embed|blocks|norm|pred|pos_embed)\b", r"decoder.\1"),
    (r"^encoder_to_decoder\.", "decoder.embed."),
    (r"^decoder\.head\.", "decoder.pred."),
    (r"^mask_token", "decoder.mask_token"),
    (r"^(?!encoder\.|decoder\.)", "encoder."),
)
CAE_NAMES = (
    (r"^encoder_to_regresser", "bridge"),
    (r"^regresser\.", "regressor."),
    (r"\b(regressor|decoder)_blocks\.", "blocks."),
    (r"\bnorm1_([qkv])\.", r"norm_\1."),
    (r"\b(norm2|mlp|gamma_1|gamma_2)_cross\b", r"\1"),
)


def to_ours(tensors: dict[str, np.ndarray], names: tuple[tuple[str, str], ...]) -> dict[str, np.ndarray]:
    """Return PyTorch tensors as float64 arrays with our names and layouts."""
    ours = {}
    for name, value in tensors.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        ours[name] = (value.T if value.ndim == 2 else value).astype(np.float64)
    return ours


@pytest.fixture
def mae_weights():
    """Return a function that converts the weights of an original MAE."""
    return lambda tensors: to_ours(tensors, MAE_NAMES)


@pytest.fixture
def cae_weights():
    """Return a function that converts the weights of the original CAE."""
    return lambda tensors: to_ours(tensors, CAE_NAMES)
