"""Converts batches of pixels to normalized floats and back, on the device: the last stage of the data pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from plsc_mae.data.pixels import per_channel
from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD


class Normalize(nn.Layer):
    """Layer that maps pixels [B, H, W, C] from 0 to 255 to float32 [B, C, H, W] with (x / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        # Constants from the options, not weights, so they are kept out of the state dict.
        self.register_buffer("mean", _per_channel(mean), persistable=False)
        self.register_buffer("std", _per_channel(std), persistable=False)

    @classmethod
    def for_channels(cls, channels: int, mean: Sequence[float], std: Sequence[float]) -> Normalize:
        """Return the layer for images of `channels` channels, see `pixels.per_channel`."""
        return cls(per_channel(mean, channels), per_channel(std, channels))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize pixels [B, H, W, C], uint8 or float32, to float32 [B, C, H, W], also under mixed precision."""
        with paddle.amp.auto_cast(enable=False):
            # Paddle 2.6 does not trace a transposition of uint8.
            pixels = images.astype("float32").transpose([0, 3, 1, 2])  # [B, H, W, C] -> [B, C, H, W]
            return (pixels / 255 - self.mean) / self.std

    def denormalize(self, images: Tensor) -> Tensor:
        """Convert normalized images [B, C, H, W] back to pixel values.

        Returns:
            Pixels float32 [B, C, H, W], in [0, 1] for images; a network's predictions may exceed that range.
        """
        with paddle.amp.auto_cast(enable=False):
            return images.astype("float32") * self.std + self.mean


def _per_channel(values: Sequence[float]) -> Tensor:
    return paddle.to_tensor(values, dtype="float32").reshape([1, -1, 1, 1])
