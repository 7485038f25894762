"""Converts uint8 batches to normalized floats and back, on the device: the last stage of the data pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD


class Normalize(nn.Layer):
    """Layer that maps uint8 images [B, H, W, 3] to float32 [B, 3, H, W] with (x / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        # Constants from the options, not weights, so they are kept out of the state dict.
        self.register_buffer("mean", _per_channel(mean), persistable=False)
        self.register_buffer("std", _per_channel(std), persistable=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize uint8 [B, H, W, 3] to float32 [B, 3, H, W]; computes in float32 under mixed precision too."""
        with paddle.amp.auto_cast(enable=False):
            # Paddle 2.6 does not trace a transposition of uint8.
            pixels = images.astype("float32").transpose([0, 3, 1, 2])  # [B, H, W, 3] -> [B, 3, H, W]
            return (pixels / 255 - self.mean) / self.std

    def denormalize(self, images: Tensor) -> Tensor:
        """Convert normalized images [B, 3, H, W] back to pixel values.

        Returns:
            Pixels float32 [B, 3, H, W], in [0, 1] for images; a network's predictions may exceed that range.
        """
        with paddle.amp.auto_cast(enable=False):
            return images.astype("float32") * self.std + self.mean


def _per_channel(values: Sequence[float]) -> Tensor:
    return paddle.to_tensor(values, dtype="float32").reshape([1, -1, 1, 1])
