"""Peak signal-to-noise ratio (PSNR) of the predicted pixels of hidden patches, beside that of trivial predictors.

Pixels are those of the network's input in all of its channels, not those of pictures, whose contrast may be stretched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.trivial import DESCRIPTIONS, fill_hidden
from plsc_mae.wording import counted

PEAK = 255.0

Images = npt.NDArray[np.float32]  # [B, H, W, C], from 0 to 255 for every bit depth


class HiddenPSNR:
    """PSNR on the hidden patches of batches of images; every hidden pixel of all batches has the same weight."""

    def __init__(self) -> None:
        self._squared: defaultdict[str, float] = defaultdict(float)
        self._values = self._images = 0

    def add(
        self,
        original: Images,
        predicted: Mapping[str, Images],
        hidden: npt.NDArray[np.bool_],
    ) -> None:
        """Add the predictions of the networks for a batch, and compute and add those of the trivial predictors.

        Args:
            original: pixels of the images.
            predicted: {name of a network: pixels of the same shape}; only their hidden patches count.
            hidden: [B, rows, columns], True for hidden patches; every image has a visible patch.
        """
        batch, *grid = hidden.shape
        rows, columns = grid
        patch_size = original.shape[1] // rows
        mask = hidden.reshape(batch, rows * columns)
        target = _patches(original, rows, columns)
        fills = fill_hidden(target, mask, (rows, columns), patch_size)
        redrawn = {name: _patches(images, rows, columns) for name, images in predicted.items()}
        for name, pixels in {**redrawn, **{DESCRIPTIONS[name]: fill for name, fill in fills.items()}}.items():
            self._squared[name] += float(((pixels - target)[mask].astype(np.float64) ** 2).sum())
        self._values += int(mask.sum()) * target.shape[-1]
        self._images += batch

    def decibels(self) -> dict[str, float]:
        """Return 10 log10(255^2 / mean squared error) in dB by predictor, the networks first; empty without images."""
        with np.errstate(divide="ignore"):  # inf for a perfect prediction
            signal = PEAK**2 * self._values
            return {name: float(10 * np.log10(np.divide(signal, total))) for name, total in self._squared.items()}

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.2f} dB" for name, value in self.decibels().items())
        return f"PSNR on the hidden patches of {counted(self._images, 'image')}: {values}"


def _patches(images: Images, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Cut images [B, H, W, C] into patches [B, rows * columns, P * P * C], channel fastest."""
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, rows, height // rows, columns, width // columns, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1).astype(np.float32)
