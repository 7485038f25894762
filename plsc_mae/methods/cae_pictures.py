"""Pictures of CAE's predictions; tokens are drawn by the tokenizer's decoder or as mean patches.

B batch, L patches of an h x w grid, P patch size, C channels, H x W image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from plsc_mae.masking import split_mask
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.dalle import DalleDecoder
from plsc_mae.models.layers import flat_ids, patchify, unpatchify

DrawTokens = Callable[[Tensor], Tensor]  # int64 [B, L] -> pixels [B, C, H, W] in [0, 1]


def predict_hidden(model: ContextAutoencoder, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Predict the hidden patches in evaluation mode; afterwards the network is in its previous mode.

    Args:
        model: the autoencoder.
        images: [B, C, H, W], normalized.
        mask: bool [B, L], True = hidden.

    Returns:
        (predictions [B, M, K], ids int64 [B, M]) of the hidden patches in raster order.
    """
    training = model.training
    model.eval()
    logits = model(images, mask).logits
    if training:
        model.train()
    _, ids = split_mask(mask)
    return logits.reshape([*ids.shape, -1]), ids


def replace_tokens(x: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Return x [B, L, ...] with the entries of the patches `ids` [B, M] replaced by `values` [B, M, ...]."""
    return paddle.scatter(x.flatten(0, 1), flat_ids(ids, x.shape[1]), values.flatten(0, 1)).reshape(x.shape)


def decoder_drawing(decoder: DalleDecoder, grid: tuple[int, int], size: tuple[int, int]) -> DrawTokens:
    """Return a function that decodes tokens by a dVAE and resizes the pictures to `size` = (H, W) pixels."""

    def draw(tokens: Tensor) -> Tensor:
        pixels = decoder.decode(tokens.reshape([-1, *grid]))
        return F.interpolate(pixels, size=list(size), mode="bicubic", align_corners=False).clip(0, 1)

    return draw


def mean_patch_drawing(
    pixels: Tensor, tokens: Tensor, num_classes: int, grid: tuple[int, int], patch_size: int
) -> DrawTokens:
    """Return a function that draws each token as the mean of all patches with this token.

    A token that no patch has is drawn in mid-gray.

    Args:
        pixels: images [B, C, H, W] in [0, 1] whose patches are averaged.
        tokens: tokens of these images, int64 [B, L].
        num_classes: size of the vocabulary.
        grid: rows and columns of patches.
        patch_size: P.
    """
    patches = patchify(pixels, patch_size).flatten(0, 1)
    index = tokens.reshape([-1, 1])
    sums = paddle.scatter_nd_add(paddle.zeros([num_classes, patches.shape[1]]), index, patches)
    counts = paddle.scatter_nd_add(paddle.zeros([num_classes, 1]), index, paddle.ones([len(patches), 1]))
    table = paddle.where(counts > 0, sums / counts.clip(min=1.0), paddle.full_like(sums, 0.5))

    def draw(tokens: Tensor) -> Tensor:
        drawn = paddle.gather(table, tokens.flatten()).reshape([*tokens.shape, -1])
        return unpatchify(drawn, grid, patch_size)

    return draw
