"""Reconstruction of images with a masked autoencoder (facebookresearch/mae demo/mae_visualize.ipynb).

A model trained with norm_pix_loss does not predict the mean and the standard deviation of a patch. Its pictures take
these two from another source, which the label of the reconstruction names.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from plsc_mae.methods.base import MASKED, PatchStats
from plsc_mae.models.mae import MaskedAutoencoder

_SOURCES = {
    "original": "patch mean and std from the original",
    "visible": "patch mean and std from visible neighbors",
}


def redraw(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, mask_ratio: float, patch_stats: PatchStats = "original"
) -> dict[str, Tensor]:
    """Mask images and reconstruct them.

    Args:
        model: the autoencoder; it runs in evaluation mode and returns to its previous mode.
        images: normalized images [B, C, H, W].
        noise: uniform random numbers [B, L] that determine the masks.
        mask_ratio: fraction of masked patches.
        patch_stats: source of the mean and std of patches, for models with norm_pix_loss only: "original" takes them
            from the original image, which is information that the model lacks (pengzhiliang/MAE-pytorch does so too);
            "visible" estimates them from visible patches.

    Returns:
        {label: normalized images [B, C, H, W]}: original, masked (masked patches are 0), reconstruction (for models
        with norm_pix_loss, the label also names the source), reconstruction + visible.
    """
    training = model.training
    model.eval()
    out = model(images, noise, mask_ratio)
    if training:
        model.train()
    patches, hidden = model.patchify(images), out.mask.astype("float32").unsqueeze(-1)
    pred, label = out.pred.astype("float32"), "reconstruction"
    statistics = model.statistics(patches)
    if statistics is not None:
        if patch_stats == "visible":
            statistics = _from_visible(*statistics, out.mask, model.encoder.grid)
        label = f"reconstruction ({_SOURCES[patch_stats]})"
    pred = model.drawn(pred, statistics)
    return {
        "original": images,
        MASKED: model.unpatchify(patches * (1 - hidden)),
        label: model.unpatchify(pred),
        "reconstruction + visible": model.unpatchify(patches * (1 - hidden) + pred * hidden),
    }


def _from_visible(mean: Tensor, std: Tensor, mask: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Estimate mean and std of every patch from those of visible patches, with weights of about 1 / distance^4."""
    rows, columns = paddle.meshgrid(paddle.arange(grid[0]), paddle.arange(grid[1]))
    places = paddle.stack([rows.flatten(), columns.flatten()], axis=1).astype("float32")  # [L, 2]
    squared = ((places.unsqueeze(1) - places.unsqueeze(0)) ** 2).sum(axis=-1)  # [L, L]
    weights = 1.0 / (squared + 0.1) ** 2 * (1 - mask.astype("float32")).unsqueeze(1)  # [B, L, L]
    weights = weights / weights.sum(axis=-1, keepdim=True)
    return paddle.matmul(weights, mean), paddle.matmul(weights, std)
