"""The masked autoencoder (He et al. 2022), exactly as facebookresearch/mae computes it.

B batch, L patches, K visible, M hidden (L = K + M), D encoder width, P patch size, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor, nn

from plsc_mae.losses import normalize_patches, squared_error
from plsc_mae.masking import Mask, num_visible, random_masking
from plsc_mae.models.layers import Block, Linear, flat_rows, layer_norm, patchify, take_rows, unpatchify
from plsc_mae.models.vit import VisionTransformer, check_heads, fixed_table, token_parameter


class MAEOutput(NamedTuple):
    """What a forward pass of `MaskedAutoencoder` gives."""

    loss: Tensor  # scalar: mean squared error over hidden patches
    pred: Tensor | None  # [B, L, P*P*C] in raster order, in the space of the targets; None when only the loss is asked
    mask: Tensor  # bool [B, L], True = hidden
    latent: Tensor  # [B, 1 + K, D] encoder output, class token first, patches in the order of rising noise
    ids_restore: Tensor  # int64 [B, L]


class MAEDecoder(nn.Layer):
    """The light transformer that predicts pixels from the encoder's tokens and mask tokens."""

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        patch_dim: int,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_heads("decoder_embed_dim", embed_dim, num_heads)
        self.embed = Linear(encoder_dim, embed_dim)
        self.mask_token = token_parameter(self, embed_dim)
        self.register_buffer("pos_embed", fixed_table(embed_dim, grid))
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = layer_norm(embed_dim)
        self.pred = Linear(embed_dim, patch_dim)

    def forward(self, latent: Tensor, mask: Mask, *, only_masked: bool = False) -> Tensor:
        """Predict patches.

        Args:
            latent: encoder output [B, 1 + K, D].
            mask: which patches the encoder saw.
            only_masked: let the last block and the head work on hidden patches only, in the order of `ids_masked`;
                the values are the same, at less cost.

        Returns:
            [B, L, P*P*C] in raster order, or [B, M, P*P*C].
        """
        x = self._tokens(latent, mask.ids_restore)
        for block in self.blocks[:-1]:
            x = block(x)
        if only_masked:
            x = self.blocks[-1](x, flat_rows(mask.ids_masked + 1, x.shape[1]))
        else:
            x = self.blocks[-1](x)[:, 1:]
        return self.pred(self.norm(x))

    def _tokens(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Class token, then visible and mask tokens in raster order, with their positions: [B, 1 + L, D]."""
        batch, patches = ids_restore.shape
        x = self.embed(latent)
        hidden = self.mask_token.astype(x.dtype).expand([batch, patches + 1 - x.shape[1], x.shape[2]])
        shuffled = paddle.concat([x[:, 1:], hidden], axis=1)
        raster = take_rows(shuffled, flat_rows(ids_restore, patches))
        return paddle.concat([x[:, :1], raster], axis=1) + self.pos_embed


class MaskedAutoencoder(nn.Layer):
    """MAE: a ViT encodes the visible patches, a light decoder redraws the hidden ones.

    Args:
        img_size: image side, or height and width, in pixels.
        patch_size: patch side in pixels.
        in_chans: image channels.
        embed_dim: encoder width.
        depth: encoder blocks.
        num_heads: encoder heads.
        mlp_ratio: hidden width of all MLPs over the width of their block.
        drop_path: stochastic depth rate of the last encoder block.
        decoder_embed_dim: decoder width.
        decoder_depth: decoder blocks.
        decoder_num_heads: decoder heads.
        norm_pix_loss: normalize every target patch by its own mean and unbiased variance.

    Raises:
        ConfigError: sizes that do not fit together.
    """

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
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        self.patch_size, self.in_chans = patch_size, in_chans
        self.encoder = VisionTransformer(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, drop_path
        )
        self.decoder = MAEDecoder(
            embed_dim,
            self.encoder.grid,
            patch_size * patch_size * in_chans,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            mlp_ratio,
        )

    def forward(
        self, images: Tensor, noise: Tensor | None = None, mask_ratio: float = 0.75, *, loss_only: bool = False
    ) -> MAEOutput:
        """Hide patches, encode the rest, predict and compare.

        Args:
            images: [B, C, H, W], normalized.
            noise: [B, L] uniform draws that decide the mask; drawn here when None.
            mask_ratio: share of hidden patches.
            loss_only: predict hidden patches only; `pred` is then None and the loss the same.
        """
        if noise is None:
            noise = paddle.rand([images.shape[0], self.encoder.num_patches])
        mask = random_masking(noise, mask_ratio)
        patches = patchify(images, self.patch_size)
        latent = self.encoder.encode(patches, mask.ids_keep)
        masked_rows = flat_rows(mask.ids_masked, self.encoder.num_patches)
        pred = self.decoder(latent, mask, only_masked=loss_only)
        pred_masked = pred if loss_only else take_rows(pred, masked_rows)
        loss = squared_error(pred_masked, self.target(take_rows(patches, masked_rows)))
        return MAEOutput(loss, None if loss_only else pred, mask.mask, latent, mask.ids_restore)

    def target(self, patches: Tensor) -> Tensor:
        """What the decoder is to predict for patches [..., P*P*C]: their pixels, normalized with norm_pix_loss."""
        return normalize_patches(patches) if self.norm_pix_loss else patches

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode whole images; never masks. [B, C, H, W] -> [B, 1 + L, D]."""
        return self.encoder.forward_features(images)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, P*P*C]."""
        return patchify(images, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """[B, L, P*P*C] -> [B, C, H, W]."""
        return unpatchify(patches, self.encoder.grid, self.patch_size)

    def forward_macs(self, mask_ratio: float = 0.75) -> int:
        """Multiply-accumulates of one image's forward pass: embedding, linear layers and attention products."""
        patches = self.encoder.num_patches
        visible = num_visible(patches, mask_ratio)
        encoder, decoder = self.encoder, self.decoder
        macs = encoder.forward_macs(visible + 1)
        macs += (visible + 1) * decoder.embed.weight.size
        macs += sum(block.macs(patches + 1) for block in decoder.blocks)
        return int(macs + (patches + 1) * decoder.pred.weight.size)
