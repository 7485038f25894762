"""Pictures of one or three channels of images, with stretched contrast for deep images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.data.pixels import RGB_CHANNELS, PixelFormat, Pixels

Stacks = npt.NDArray[Any]  # [B, H, W, C], from 0 to 1
_PERCENTILES = (2, 98)  # of each channel of an image; they become black and full brightness
_HIDDEN, _CROSS = 128, 64  # gray levels of a hidden patch and of the cross in it


class Display(NamedTuple):
    """Channels and contrast of pictures."""

    # zero-based indices of three channels for red, green and blue, or of one channel for gray
    channels: tuple[int, ...] = (0, 1, 2)
    stretched: bool = False  # whether the 2nd and 98th percentile of each channel of the original become 0 and 255

    @classmethod
    def of(cls, pixel_format: PixelFormat, bands: tuple[int, ...] | None = None) -> Display:
        """Return the display of the channels `bands`, counted from 1.

        None chooses the first three channels, or the first one if there are fewer than three.
        """
        first = (0, 1, 2) if pixel_format.channels >= RGB_CHANNELS else (0,)
        chosen = tuple(band - 1 for band in bands) if bands else first
        return cls(chosen, pixel_format.dtype is np.float32)

    def draw(self, drawn: Mapping[str, Stacks]) -> dict[str, npt.NDArray[np.uint8]]:
        """Return pictures uint8 [B, H, W, 3] by label.

        Args:
            drawn: images [B, H, W, C] from 0 to 1 by label, the original first; if `stretched`, its percentiles apply
                to all of them.
        """
        shown = {label: self._show(stack) for label, stack in drawn.items()}
        if self.stretched:
            original = next(iter(shown.values()))
            low, high = np.percentile(original, _PERCENTILES, axis=(1, 2), keepdims=True)
            span = np.maximum(high - low, 1e-6)
            shown = {label: (stack - low) / span for label, stack in shown.items()}
        return {label: np.rint(np.clip(stack, 0, 1) * 255).astype(np.uint8) for label, stack in shown.items()}

    def draw_pixels(self, pixels: Pixels) -> Pixels:
        """Return the picture uint8 [H, W, 3] of pixels [H, W, C] from 0 to 255.

        `RGB_DISPLAY` returns 8-bit RGB unchanged.
        """
        if self == RGB_DISPLAY and pixels.dtype == np.uint8 and pixels.shape[2] == RGB_CHANNELS:
            return pixels
        return self.draw({"": pixels[None] / np.float32(255)})[""][0]

    def _show(self, stack: Stacks) -> Stacks:
        channels = self.channels if len(self.channels) == RGB_CHANNELS else self.channels[:1] * RGB_CHANNELS
        return stack[..., list(channels)].astype(np.float32)


def cross_out(pictures: Pixels, hidden: npt.NDArray[np.bool_]) -> Pixels:
    """Return pictures whose hidden patches are gray with a dark cross, which cannot be mistaken for data.

    Args:
        pictures: uint8 [B, H, W, 3].
        hidden: [B, rows, columns], True for hidden patches, which are square.
    """
    side = pictures.shape[1] // hidden.shape[1]
    rows, columns = np.indices((side, side))
    cross = np.minimum(abs(rows - columns), abs(rows + columns - side + 1)) <= side // 16
    patch = np.where(cross, _CROSS, _HIDDEN).astype(np.uint8)
    drawn = np.tile(patch, hidden.shape[1:])[None, :, :, None]
    return np.where(hidden.repeat(side, axis=1).repeat(side, axis=2)[..., None], drawn, pictures)


RGB_DISPLAY = Display()
