"""SimMIM (Xie et al. 2022) with a Vision Transformer, as microsoft/SimMIM computes it.

B batch, L patches, D width, P patch size, C channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import paddle
from paddle import Tensor, nn

from plsc_mae.losses import channels_first, channels_last
from plsc_mae.models.layers import (
    Linear,
    initializes,
    patchify,
    require_mask_of,
    truncated_normal,
    unpatchify,
)
from plsc_mae.models.vit import VisionTransformer, token_parameter

LOSS_EPS = 1e-5  # added to the number of hidden pixels, by which the loss is divided


class SimMIMOutput(NamedTuple):
    """The result of a forward pass of `SimMIM`."""

    pred: Tensor  # [B, L, C*P*P], all patches in raster order, channel slowest
    latent: Tensor  # [B, 1 + L, D] after the final norm, class token first


class MaskTokenEncoder(VisionTransformer):
    """A ViT that sees a learned mask token instead of every hidden patch; for its arguments see `encoder_arguments`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.mask_token = token_parameter(self, self.embed_dim)

    def encode_masked(self, images: Tensor, mask: Tensor) -> Tensor:
        """Encode images with hidden patches.

        Args:
            images: [B, C, H, W], normalized.
            mask: bool [B, L], True = hidden.

        Returns:
            [B, 1 + L, D] after the final norm, class token first.

        Raises:
            ValueError: the mask does not have one entry per patch, a side of the images is not a multiple of P, or the
                images do not have the network's number of patches.
        """
        patches = patchify(images, self.patch_size)
        require_mask_of(patches, mask)
        # Tokens have the dtype of the parameters, as in our other encoders, even under mixed precision.
        tokens = self.patch_embed(patches).astype(self.mask_token.dtype)
        hidden = mask.unsqueeze(-1).astype(tokens.dtype)
        tokens = tokens * (1.0 - hidden) + self.mask_token * hidden
        cls = cast(Tensor, self.cls_token).expand([tokens.shape[0], 1, self.embed_dim])
        return self.norm(self.transform(paddle.concat([cls, tokens], axis=1)))


def encoder_arguments(layer_scale_init_value: float, **sizes: Any) -> dict[str, Any]:
    """Return the `VisionTransformer` arguments of a SimMIM encoder, which include `sizes` unchanged.

    Keys have no bias, all blocks share one table of relative positions, and there are no absolute positions.
    """
    fixed = {"k_bias": False, "positions": "none", "relative_positions": "shared"}
    return {**sizes, "layer_scale": layer_scale_init_value, **fixed}


class SimMIM(nn.Layer):
    """SimMIM: an encoder of visible patches and mask tokens, and a linear layer that predicts all patches.

    Args:
        img_size: image side, or height and width, in pixels.
        patch_size: patch side in pixels.
        in_chans: image channels.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLPs' hidden width to D.
        drop_path: stochastic depth rate of the last block, see `drop_path_rates`.
        layer_scale_init_value: initial layer scale; 0 for no layer scale.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    pixel_layer, channels_first = "decoder", True  # the layer that predicts pixels, the channel slowest

    def __init__(
        self,
        img_size: int | tuple[int, ...] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 0.1,
    ) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        sizes: dict[str, Any] = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
        sizes |= {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
        sizes["drop_path"] = drop_path
        self.encoder = MaskTokenEncoder(**encoder_arguments(layer_scale_init_value, **sizes))
        self.decoder = Linear(embed_dim, in_chans * patch_size * patch_size)
        self._initialize()

    def forward(self, images: Tensor, mask: Tensor) -> SimMIMOutput:
        """Predict all patches of normalized images [B, C, H, W]; `mask` is bool [B, L], True = hidden."""
        latent = self.encoder.encode_masked(images, mask)
        return SimMIMOutput(self.decoder(latent[:, 1:]), latent)

    def target(self, images: Tensor) -> Tensor:
        """Cut images into patches in the layout of `pred`: [B, C, H, W] -> [B, L, C*P*P]."""
        return channels_first(patchify(images, self.patch_size), self.in_chans)

    def draw(self, pred: Tensor) -> Tensor:
        """Turn predictions back into normalized images, the inverse of `target`: [B, L, C*P*P] -> [B, C, H, W]."""
        return unpatchify(channels_last(pred, self.in_chans), self.encoder.grid, self.patch_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode whole images without a mask: [B, C, H, W] -> [B, 1 + L, D]."""
        return self.encoder.forward_features(images)

    def forward_macs(self) -> int:
        """Count the multiply-accumulates of one image's forward pass, which processes all patches."""
        patches = self.encoder.num_patches
        return int(self.encoder.forward_macs(1 + patches) + patches * self.decoder.weight.size)

    @initializes
    def _initialize(self) -> None:
        """Initialize as the original: truncated normal weights, with residual projections scaled down with depth.

        The head gets PyTorch's default for convolutions.
        """
        encoder = self.encoder
        for parameter in (encoder.patch_embed.proj.weight, encoder.cls_token, encoder.mask_token):
            truncated_normal(parameter)
        encoder.patch_embed.proj.bias.zero_()
        for i, block in enumerate(encoder.blocks):
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                truncated_normal(layer.weight)
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.set_value(layer.weight / math.sqrt(2.0 * (i + 1)))
        bound = encoder.embed_dim**-0.5
        self.decoder.weight.uniform_(-bound, bound)
        self.decoder.bias.uniform_(-bound, bound)


def masked_l1(pred: Tensor, target: Tensor, mask: Tensor, in_chans: int) -> Tensor:
    """Return the mean of |pred - target| over channels and hidden pixels of the whole batch, in float32.

    Args:
        pred: predictions [B, L, C*P*P].
        target: targets of the same shape.
        mask: bool [B, L], True = hidden.
        in_chans: channels C.
    """
    hidden = mask.astype("float32")
    error = (pred.astype("float32") - target.astype("float32")).abs().sum(axis=-1)
    pixels = hidden.sum() * (pred.shape[-1] // in_chans)  # of one channel
    return (error * hidden).sum() / (pixels + LOSS_EPS) / in_chans
