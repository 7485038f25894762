"""Conversion of weights to another number of image channels.

The rule for the kernel of the patch embedding: every new channel gets the mean of the old channels' kernels, times the
ratio of the old number of channels to the new one. So an image with equal channels gives the same tokens before and
after. The rule for a layer that predicts pixels: every new channel gets the mean of the old channels' predictions.
"""

from __future__ import annotations

import numpy as np

from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded
from plsc_mae.weights.dialects import detect, find_dialect
from plsc_mae.weights.dialects.base import Array

PATCH_KERNEL = "patch_embed.proj.weight"


def stored_channels(stored: Checkpoint) -> int | None:
    """Return the number of image channels of the network in a file; None if it cannot be determined.

    Raises:
        CheckpointError: the shapes of the tensors fit no network of their dialect.
    """
    name = detect(stored.model)
    if name and find_dialect(name).decode is not None:
        stored = decoded(stored, 1, 1)  # the shape of the kernel does not depend on the number of heads
        name = detect(stored.model)
    kernel = stored.model.get(find_dialect(name).foreign_name(f"encoder.{PATCH_KERNEL}")) if name else None
    return int(kernel.shape[1]) if kernel is not None and kernel.ndim == len("DCPP") else None


def convert_kernel(kernel: Array, channels: int) -> Array:
    """Convert the kernel [D, C, P, P] of a patch embedding to `channels` channels by the rule of this module."""
    total = kernel.astype(np.float32).sum(axis=1, keepdims=True)
    return np.repeat(total / np.float32(channels), channels, axis=1)


def convert_predictions(values: Array, channels: tuple[int, int], *, channels_first: bool) -> Array:
    """Convert the weight [D, P*P*C] or bias [P*P*C] of a layer that predicts pixels by the rule of this module.

    Args:
        values: the parameter.
        channels: old and new number of channels.
        channels_first: True if the elements of a patch are ordered by channel, False if by pixel.
    """
    old, new = channels
    axis = -2 if channels_first else -1
    grouped = values.astype(np.float32).reshape([*values.shape[:-1], *((old, -1) if channels_first else (-1, old))])
    return np.repeat(grouped.mean(axis=axis, keepdims=True), new, axis=axis).reshape([*values.shape[:-1], -1])
