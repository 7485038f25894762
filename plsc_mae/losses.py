"""Losses and targets of the pretext tasks."""

from __future__ import annotations

import paddle
from paddle import Tensor

PATCH_VARIANCE_EPS = 1e-6


def normalize_patches(patches: Tensor, eps: float = PATCH_VARIANCE_EPS) -> Tensor:
    """Normalize each patch by its own mean and unbiased variance, eps inside the root (facebookresearch/mae).

    Args:
        patches: [..., P*P*C] pixels of all channels.
        eps: added to the variance.
    """
    centred = patches - patches.mean(axis=-1, keepdim=True)
    variance = (centred * centred).sum(axis=-1, keepdim=True) / (patches.shape[-1] - 1)
    return centred / paddle.sqrt(variance + eps)


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in float32 over patches [B, M, P*P*C]; every image hides the same number."""
    error = pred.astype("float32") - target.astype("float32")
    return (error * error).mean()
