"""Losses and pixel targets of pre-training, and the losses of classification and of multi-label classification."""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor

PATCH_VARIANCE_EPS = 1e-6
PixelNorm = Literal["none", "layernorm", "patch", "channel"]


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of two tensors of the same shape, in float32.

    It serves MAE (`models.mae.hidden_patch_loss`), the alignment of CAE and the pixel reconstruction of CAE. To change
    the loss of one of them, change the caller, not this function.
    """
    error = pred.astype("float32") - target.astype("float32")
    return (error * error).mean()


def alignment_loss(pred: Tensor, target: Tensor, kind: Literal["mse", "kld"] = "mse") -> Tensor:
    """Return the distance of predicted representations [..., D] from their targets, in float32.

    Args:
        pred: predictions of the regressor.
        target: the encoder's representations of the same patches.
        kind: "mse" is the mean squared error (Atten4Vis/CAE); "kld" is KL(softmax(target) || softmax(pred)) over D, but
            averaged over all elements instead of summed over D (PLSC).
    """
    if kind == "mse":
        return squared_error(pred, target)
    log_pred = F.log_softmax(pred.astype("float32"), axis=-1)
    log_target = F.log_softmax(target.astype("float32"), axis=-1)
    return (paddle.exp(log_target) * (log_target - log_pred)).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy, in float32, of logits [B, K] with class numbers [B].

    The mean is taken here, because Paddle 2.6 waits for the device when it averages: it looks for labels to ignore.
    """
    return F.cross_entropy(logits.astype("float32"), labels, reduction="none").mean()


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy, in float32, of logits [B, K] with target distributions [B, K]."""
    log_p = F.log_softmax(logits.astype("float32"), axis=-1)
    return -(targets.astype("float32") * log_p).sum(axis=-1).mean()


def label_smoothing_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the mean cross entropy with smoothed labels, in float32 (Szegedy et al. 2016).

    Args:
        logits: [B, K].
        labels: class numbers [B].
        smoothing: share of every label that is spread evenly over all classes; 0 gives the plain cross entropy.
    """
    log_p = F.log_softmax(logits.astype("float32"), axis=-1)
    return (1 - smoothing) * F.nll_loss(log_p, labels) - smoothing * log_p.mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross entropy, float32 [B, K], of logits [B, K] with targets [B, K] from 0 to 1.

    Targets may be NaN (unknown); the loss is then that of target 0, and `known_mean` leaves it out.
    """
    return F.binary_cross_entropy_with_logits(logits.astype("float32"), zero_unknown(targets), reduction="none")


def zero_unknown(targets: Tensor) -> Tensor:
    """Return targets with 0 in place of NaN, because a loss of NaN has the gradient NaN even where it is masked out."""
    return paddle.where(paddle.isnan(targets), paddle.zeros_like(targets), targets)


def known_mean(values: Tensor, targets: Tensor, axis: int | None = None) -> Tensor:
    """Return the mean of `values` [B, K] where `targets` [B, K] are not NaN, over all elements or over `axis`.

    Where all targets are NaN, the mean is 0.
    """
    known = ~paddle.isnan(targets)
    counted = paddle.where(known, values, paddle.zeros_like(values))
    return counted.sum(axis=axis) / known.astype("float32").sum(axis=axis).clip(min=1.0)


def normalize_patches(patches: Tensor, kind: PixelNorm = "patch", in_chans: int = 3) -> Tensor:
    """Normalize the pixels of every patch by its own statistics; shape and order of the pixels stay the same.

    Args:
        patches: pixels [..., P*P*C], channel fastest.
        kind: "none" returns the pixels unchanged. "patch" subtracts the mean of all channels and divides by
            sqrt(unbiased variance + eps) (facebookresearch/mae). "layernorm" does so with the biased variance (PLSC
            task/ssl/cae, BUPT-PRIV/MAE-priv). "channel" normalizes each channel separately and divides by its unbiased
            standard deviation + eps (pengzhiliang/MAE-pytorch, PLSC).
        in_chans: channels C.
    """
    if kind == "none":
        return patches
    if kind == "layernorm":
        return F.layer_norm(patches, patches.shape[-1:], epsilon=PATCH_VARIANCE_EPS)
    mean, scale = patch_statistics(patches, kind, in_chans)
    return (patches - mean) / scale


def patch_statistics(patches: Tensor, kind: PixelNorm, in_chans: int = 3) -> tuple[Tensor, Tensor]:
    """Return the mean and scale of `normalize_patches`: `normalized = (patches - mean) / scale`.

    Returns:
        (mean, scale), each [..., 1]; for "channel" of the shape of `patches`, for "none" [1].
    """
    if kind == "none":
        return paddle.zeros([1]), paddle.ones([1])
    # Paddle rounds `x**2` and `x * x` differently; each kind keeps the form with which its reference losses were made.
    if kind == "channel":
        channels = _swapped(patches.reshape([*patches.shape[:-1], -1, in_chans]))
        mean = channels.mean(axis=-1, keepdim=True)
        variance = ((channels - mean) ** 2).sum(axis=-1, keepdim=True) / (channels.shape[-1] - 1)
        scale = paddle.sqrt(variance) + PATCH_VARIANCE_EPS
        mean, scale = (channels_last(x.expand(channels.shape).flatten(-2), in_chans) for x in (mean, scale))
        return mean, scale
    mean = patches.mean(axis=-1, keepdim=True)
    centered = patches - mean
    count = patches.shape[-1] - (1 if kind == "patch" else 0)
    return mean, paddle.sqrt((centered * centered).sum(axis=-1, keepdim=True) / count + PATCH_VARIANCE_EPS)


def normalize_pixels(patches: Tensor, kind: PixelNorm, in_chans: int = 3) -> Tensor:
    """Return the pixel targets of CAE (PLSC task/ssl/cae engine_pretrain.py).

    Args:
        patches: pixels [..., P*P*C], channel fastest.
        kind: see `normalize_patches`; for "channel" the result is [..., C*P*P] with the channel slowest.
        in_chans: channels C.
    """
    normalized = normalize_patches(patches, kind, in_chans)
    return channels_first(normalized, in_chans) if kind == "channel" else normalized


def denormalize_pixels(pred: Tensor, patches: Tensor, kind: PixelNorm, in_chans: int = 3) -> Tensor:
    """Undo `normalize_pixels` for predictions in the layout of its result, with the statistics of `patches`.

    Args:
        pred: predictions, [..., C*P*P] for the kind "channel", else [..., P*P*C].
        patches: pixels [..., P*P*C], channel fastest.
        kind: see `normalize_patches`.
        in_chans: channels C.

    Returns:
        Pixels [..., P*P*C], channel fastest.
    """
    mean, scale = patch_statistics(patches, kind, in_chans)
    return (channels_last(pred, in_chans) if kind == "channel" else pred) * scale + mean


def channels_first(patches: Tensor, in_chans: int = 3) -> Tensor:
    """Reorder the pixels of a patch so that the channel changes slowest: [..., P*P*C] -> [..., C*P*P]."""
    return _swapped(patches.reshape([*patches.shape[:-1], -1, in_chans])).flatten(-2)


def channels_last(patches: Tensor, in_chans: int = 3) -> Tensor:
    """Undo `channels_first`: [..., C*P*P] -> [..., P*P*C]."""
    return _swapped(patches.reshape([*patches.shape[:-1], in_chans, -1])).flatten(-2)


def _swapped(x: Tensor) -> Tensor:
    """Swap the last two axes."""
    return x.transpose([*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])
