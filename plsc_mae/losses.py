"""Losses and targets of the pretext tasks, and the cross entropies of classification."""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor

PATCH_VARIANCE_EPS = 1e-6


def normalize_patches(patches: Tensor, eps: float = PATCH_VARIANCE_EPS) -> Tensor:
    """Normalize each patch by its own mean and unbiased variance, eps inside the root (facebookresearch/mae).

    Args:
        patches: [..., P*P*C] pixels of all channels.
        eps: added to the variance.
    """
    centered = patches - patches.mean(axis=-1, keepdim=True)
    variance = (centered * centered).sum(axis=-1, keepdim=True) / (patches.shape[-1] - 1)
    return centered / paddle.sqrt(variance + eps)


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in float32 over patches [B, M, P*P*C]; every image hides the same number."""
    error = pred.astype("float32") - target.astype("float32")
    return (error * error).mean()


def alignment_loss(pred: Tensor, target: Tensor, kind: Literal["mse", "kld"] = "mse") -> Tensor:
    """How far predicted representations [..., D] are from their target, in float32, averaged over all elements.

    Args:
        pred: what the regressor predicts.
        target: what the encoder makes of the patches.
        kind: squared error (Atten4Vis/CAE), or KL(softmax(target) || softmax(pred)) over D (PLSC), which is averaged
            over elements and not over representations.
    """
    if kind == "mse":
        return squared_error(pred, target)
    log_pred = F.log_softmax(pred.astype("float32"), axis=-1)
    log_target = F.log_softmax(target.astype("float32"), axis=-1)
    return (paddle.exp(log_target) * (log_target - log_pred)).mean()


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits [B, K] with a distribution per row, float [B, K], in float32; mean over the batch."""
    log_p = F.log_softmax(logits.astype("float32"), axis=-1)
    return -(targets.astype("float32") * log_p).sum(axis=-1).mean()


def label_smoothing_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy in float32 with labels of which a share is spread over all classes (Szegedy et al. 2016).

    Args:
        logits: [B, K].
        labels: class numbers [B].
        smoothing: that share; 0 gives the plain cross entropy.
    """
    log_p = F.log_softmax(logits.astype("float32"), axis=-1)
    return (1 - smoothing) * F.nll_loss(log_p, labels) - smoothing * log_p.mean()


PixelNorm = Literal["none", "layernorm", "patch", "channel"]


def patch_statistics(patches: Tensor, kind: PixelNorm, in_chans: int = 3) -> tuple[Tensor, Tensor]:
    """Mean and scale that normalize patches [..., P*P*C], channel fastest: `(patches - mean) / scale`.

    Args:
        patches: pixels.
        kind: "none"; by patch with biased ("layernorm") or unbiased ("patch") variance and eps inside the root; or
            "channel", every channel of a patch by its own mean and unbiased std plus eps.
        in_chans: channels C.

    Returns:
        Two tensors of shape [..., 1], or, for "channel", of the patches' own shape.
    """
    if kind == "none":
        return paddle.zeros([1]), paddle.ones([1])
    if kind == "channel":
        channels = _swapped(patches.reshape([*patches.shape[:-1], -1, in_chans]))
        mean, std = (channels_last(x.expand(channels.shape).flatten(-2), in_chans) for x in _mean_and_std(channels))
        return mean, std + PATCH_VARIANCE_EPS
    mean, std = _mean_and_std(patches, biased=kind == "layernorm")
    return mean, paddle.sqrt(std * std + PATCH_VARIANCE_EPS)


def normalize_pixels(patches: Tensor, kind: PixelNorm, in_chans: int = 3) -> Tensor:
    """Normalize pixel targets [..., P*P*C] by their own statistics (PLSC task/ssl/cae engine_pretrain.py).

    Args:
        patches: pixels, channel fastest.
        kind: see `patch_statistics`; "channel" gives [..., C*P*P] with the channel slowest.
        in_chans: channels C.
    """
    if kind == "none":
        return patches
    if kind == "layernorm":
        return F.layer_norm(patches, patches.shape[-1:], epsilon=PATCH_VARIANCE_EPS)
    if kind == "patch":
        return normalize_patches(patches)
    mean, scale = patch_statistics(patches, kind, in_chans)
    return channels_first((patches - mean) / scale, in_chans)


def denormalize_pixels(pred: Tensor, patches: Tensor, kind: PixelNorm, in_chans: int = 3) -> Tensor:
    """Undo `normalize_pixels` of predictions [..., K], with the statistics of `patches` [..., P*P*C]."""
    mean, scale = patch_statistics(patches, kind, in_chans)
    return (channels_last(pred, in_chans) if kind == "channel" else pred) * scale + mean


def channels_first(patches: Tensor, in_chans: int = 3) -> Tensor:
    """Let the channel be the slowest in a patch: [..., P*P*C] -> [..., C*P*P]."""
    return _swapped(patches.reshape([*patches.shape[:-1], -1, in_chans])).flatten(-2)


def channels_last(patches: Tensor, in_chans: int = 3) -> Tensor:
    """Undo `channels_first`: [..., C*P*P] -> [..., P*P*C]."""
    return _swapped(patches.reshape([*patches.shape[:-1], in_chans, -1])).flatten(-2)


def _mean_and_std(x: Tensor, *, biased: bool = False) -> tuple[Tensor, Tensor]:
    """Over the last axis, which is kept."""
    mean = x.mean(axis=-1, keepdim=True)
    count = x.shape[-1] - (0 if biased else 1)
    return mean, paddle.sqrt(((x - mean) ** 2).sum(axis=-1, keepdim=True) / count)


def _swapped(x: Tensor) -> Tensor:
    """Exchange the last two axes."""
    return x.transpose([*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])
