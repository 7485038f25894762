"""The masked autoencoder (He et al. 2022) of facebookresearch/mae and its successors.

B batch, L patches, K visible, M hidden (L = K + M), D encoder width, P patch size, C channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.losses import (
    PixelNorm,
    channels_first,
    channels_last,
    normalize_patches,
    patch_statistics,
    squared_error,
)
from plsc_mae.masking import Mask, Rounding, mask_from_bool, num_visible, random_masking
from plsc_mae.models.layers import (
    LAYER_NORM_EPS,
    Block,
    Linear,
    gather_tokens,
    initializes,
    layer_norm,
    patchify,
    require_mask_of,
    truncated_normal,
    unpatchify,
)
from plsc_mae.models.vit import (
    Positions,
    VisionTransformer,
    check_heads,
    set_positions,
    token_parameter,
    train_tables,
)

HEAD_DIM = 64  # width of a head in MAE-priv's decoders


class MAEOutput(NamedTuple):
    """The result of a forward pass of `MaskedAutoencoder`."""

    loss: Tensor  # scalar: mean squared error over hidden patches
    pred: Tensor | None  # [B, L, P*P*C] in raster order, in the space of the targets; None with `loss_only`
    mask: Tensor  # bool [B, L], True = hidden
    # Encoded tokens [B, 1 + K, D], class token first, or [B, K, D] without one; patches in order of `Mask.ids_keep`.
    latent: Tensor
    ids_restore: Tensor  # int64 [B, L], see `Mask`


class HiddenPatches(NamedTuple):
    """The predictions for hidden patches and their targets, in the order of `Mask.ids_masked`."""

    pred: Tensor  # [B, M, P*P*C]
    target: Tensor  # [B, M, P*P*C]
    latent: Tensor  # encoded tokens, see `MAEOutput`


def hidden_patch_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Return MAE's loss, the mean squared error over the pixels of hidden patches, in float32.

    Args:
        pred: [B, M, P*P*C].
        target: [B, M, P*P*C], see `MaskedAutoencoder.target`.
    """
    return squared_error(pred, target)


class MAEDecoder(nn.Layer):
    """The light transformer that predicts pixels from the encoder's tokens and mask tokens.

    Args:
        encoder_dim: width of the encoder.
        grid: rows and columns of patches.
        patch_dim: number of values predicted per patch.
        embed_dim: width of the decoder.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLPs' hidden width to `embed_dim`.
        class_token: whether the decoder gets the encoder's class token too.
        positions: kind of position table, see `VisionTransformer`.
        bridge_bias: whether the projection from the encoder has a bias.
        block: further arguments of `Block`.

    Raises:
        ConfigError: `embed_dim` is not a multiple of 4 and of `num_heads`.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        patch_dim: int,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        *,
        class_token: bool = True,
        positions: Positions = "column first",
        bridge_bias: bool = True,
        **block: Any,
    ) -> None:
        super().__init__()
        check_heads("decoder_embed_dim", embed_dim, num_heads)
        self.num_prefix_tokens = int(class_token)
        self.embed = Linear(encoder_dim, embed_dim, bias=bridge_bias)
        self.mask_token = token_parameter(self, embed_dim)
        set_positions(self, embed_dim, grid, positions, self.num_prefix_tokens)
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio, **block) for _ in range(depth)])
        self.norm = layer_norm(embed_dim)
        self.pred = Linear(embed_dim, patch_dim)

    def forward(self, latent: Tensor, masks: Mask, *, only_masked: bool = False) -> Tensor:
        """Predict the pixels of all patches, or of the hidden ones only.

        Args:
            latent: encoder output [B, K, D], or [B, 1 + K, D] for a decoder with a class token.
            masks: visible and hidden patches.
            only_masked: predict hidden patches only, in the order of `ids_masked`, at a lower cost.

        Returns:
            [B, L, P*P*C] in raster order, or [B, M, P*P*C] with `only_masked`.
        """
        x, first = self._tokens(latent, masks.ids_restore), self.num_prefix_tokens
        for block in self.blocks[:-1]:
            x = block(x)
        if only_masked:
            x = self.blocks[-1](x, masks.ids_masked + first)
        else:
            x = self.blocks[-1](x)[:, first:]
        return self.pred(self.norm(x))

    def _tokens(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Return the input of the first block: class token, if any, then visible and mask tokens in raster order."""
        (batch, patches), first = ids_restore.shape, self.num_prefix_tokens
        x = self.embed(latent)
        hidden = self.mask_token.astype(x.dtype).expand([batch, patches + first - x.shape[1], x.shape[2]])
        shuffled = paddle.concat([x[:, first:], hidden], axis=1)
        raster = gather_tokens(shuffled, ids_restore)
        return (paddle.concat([x[:, :first], raster], axis=1) if first else raster) + self.pos_embed


class MaskedAutoencoder(nn.Layer):
    """MAE: a ViT that encodes the visible patches, and a light decoder that predicts the pixels of the hidden ones.

    The arguments after `norm_pix_loss` select variants of other code bases; docs/reference/mae.md has the table.

    Args:
        img_size: image side, or height and width, in pixels.
        patch_size: patch side in pixels.
        in_chans: image channels.
        embed_dim: encoder width.
        depth: number of encoder blocks.
        num_heads: encoder heads.
        mlp_ratio: ratio of hidden width to block width in all MLPs.
        drop_path: stochastic depth rate of the last encoder block, see `drop_path_rates`.
        decoder_embed_dim: decoder width.
        decoder_depth: number of decoder blocks.
        decoder_num_heads: decoder heads; None for one head per 64 channels, at least one (MAE-priv).
        norm_pix_loss: whether every target patch is normalized by its own statistics.
        class_token: whether the encoder has a class token.
        decoder_class_token: whether the decoder gets the encoder's class token.
        positions: kind of the position tables of encoder and decoder, see `VisionTransformer`.
        train_positions: whether the position tables are trained, starting from their fixed values (LiBai).
        k_bias: whether keys have a bias.
        bridge_bias: whether the projection from encoder to decoder has a bias.
        norm_eps: eps of the blocks' layer norms; that of the two final norms is 1e-6.
        pixel_norm: kind of normalization if `norm_pix_loss` is set, see `losses.normalize_patches`.
        channels_first: whether the channel changes slowest among the values of a predicted patch.
        round_down: the count of patches that is rounded down, "visible" or "hidden", see `masking.num_visible`.
        pixel_mean: mean of each channel. With it, targets are made of images * std + mean, the pixels before the images
            were normalized; with None, they are made of the normalized images.
        pixel_std: standard deviation of each channel; without it `pixel_mean` has no effect.
        torch_init: initialize patch embedding and bridge by PyTorch's default, and tokens from a normal distribution
            truncated at one standard deviation (MAE-priv, MAE-pytorch). The default is facebookresearch/mae's.

    Raises:
        ConfigError: sizes that do not fit together; a decoder with a class token that the encoder lacks.
    """

    pixel_layer = "decoder.pred"  # the layer that predicts pixels

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
        decoder_num_heads: int | None = 16,
        norm_pix_loss: bool = False,
        *,
        class_token: bool = True,
        decoder_class_token: bool = True,
        positions: Positions = "column first",
        train_positions: bool = False,
        k_bias: bool = True,
        bridge_bias: bool = True,
        norm_eps: float = LAYER_NORM_EPS,
        pixel_norm: PixelNorm = "patch",
        channels_first: bool = False,
        round_down: Rounding = "visible",
        pixel_mean: tuple[float, ...] | None = None,
        pixel_std: tuple[float, ...] | None = None,
        torch_init: bool = False,
    ) -> None:
        super().__init__()
        if decoder_class_token and not class_token:
            raise ConfigError("decoder_class_token needs a class_token in the encoder")
        self.norm_pix_loss, self.pixel_norm = norm_pix_loss, pixel_norm
        self.patch_size, self.in_chans = patch_size, in_chans
        self.channels_first, self.round_down = channels_first, round_down
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        sizes = (img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, drop_path)
        shared: dict[str, Any] = {"positions": positions, "k_bias": k_bias, "norm_eps": norm_eps}
        self.encoder = VisionTransformer(*sizes, class_token=class_token, **shared)
        self.decoder = MAEDecoder(
            embed_dim,
            self.encoder.grid,
            patch_size * patch_size * in_chans,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads or max(decoder_embed_dim // HEAD_DIM, 1),
            mlp_ratio,
            class_token=decoder_class_token,
            bridge_bias=bridge_bias,
            **shared,
        )
        if train_positions:
            train_tables(self.encoder, self.decoder)
        if torch_init:
            self._initialize_as_torch()

    def forward(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        mask_ratio: float = 0.75,
        *,
        mask: Tensor | None = None,
        loss_only: bool = False,
    ) -> MAEOutput:
        """Hide patches, encode the visible ones, predict all, and compute the loss of the hidden ones.

        Args:
            images: [B, C, H, W], normalized.
            noise: uniform draws [B, L] that determine the mask; None draws them here.
            mask_ratio: share of hidden patches.
            mask: bool [B, L], True = hidden, instead of `noise` and `mask_ratio`; every image hides the same number.
            loss_only: predict hidden patches only. `pred` is then None; the loss is the same.

        Raises:
            ValueError: the images do not have the network's number of patches, or a side is not a multiple of P; `mask`
                does not have one entry per patch, or hides all or no patches, or different numbers of patches per
                image.
        """
        if mask is not None:
            require_mask_of(patchify(images, self.patch_size), mask)
            masks = mask_from_bool(mask)
        else:
            noise = paddle.rand([images.shape[0], self.encoder.num_patches]) if noise is None else noise
            masks = self.random_masks(noise, mask_ratio)
        if loss_only:
            hidden, pred = self.predict_hidden(images, masks), None
        else:
            pred, latent = self.predict_all(images, masks)
            patches = patchify(images, self.patch_size)
            hidden = self._hidden(gather_tokens(pred, masks.ids_masked), patches, masks, latent)
        loss = hidden_patch_loss(hidden.pred, hidden.target)
        return MAEOutput(loss, pred, masks.mask, hidden.latent, masks.ids_restore)

    def random_masks(self, noise: Tensor, mask_ratio: float) -> Mask:
        """Return the mask that hides the patches with the largest noise [B, L] of each image."""
        return random_masking(noise, mask_ratio, self.round_down)

    def predict_all(self, images: Tensor, masks: Mask) -> tuple[Tensor, Tensor]:
        """Encode the visible patches and predict all.

        Args:
            images: [B, C, H, W], normalized.
            masks: visible and hidden patches.

        Returns:
            (predictions [B, L, P*P*C] in raster order, encoded tokens as in `MAEOutput.latent`).
        """
        latent = self.encoder.encode(patchify(images, self.patch_size), masks.ids_keep)
        return self.decoder(self._decoder_input(latent), masks), latent

    def predict_hidden(self, images: Tensor, masks: Mask) -> HiddenPatches:
        """Encode the visible patches and predict only the hidden ones, as training does.

        Args:
            images: [B, C, H, W], normalized.
            masks: visible and hidden patches.
        """
        patches = patchify(images, self.patch_size)
        latent = self.encoder.encode(patches, masks.ids_keep)
        pred = self.decoder(self._decoder_input(latent), masks, only_masked=True)
        return self._hidden(pred, patches, masks, latent)

    def target(self, patches: Tensor) -> Tensor:
        """Return the prediction targets [..., P*P*C] for patches of normalized images, in the decoder's pixel order."""
        pixels = self._target_space(patches)
        if self.norm_pix_loss:
            pixels = normalize_patches(pixels, self.pixel_norm, self.in_chans)
        return channels_first(pixels, self.in_chans) if self.channels_first else pixels

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the (mean, scale) by which `target` normalizes patches [..., P*P*C]; None without `norm_pix_loss`.

        The shapes are those of `losses.patch_statistics`.
        """
        if not self.norm_pix_loss:
            return None
        return patch_statistics(self._target_space(patches), self.pixel_norm, self.in_chans)

    def drawn(self, pred: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the patches of normalized images that predictions [..., P*P*C] represent, the inverse of `target`.

        `statistics` is the result of the method `statistics` for the true patches, or an estimate of it.
        """
        pixels = channels_last(pred, self.in_chans) if self.channels_first else pred
        if statistics is not None:
            pixels = pixels * statistics[1] + statistics[0]
        if self.pixel_mean is None or self.pixel_std is None:
            return pixels
        return (pixels - self._per_value(self.pixel_mean)) / self._per_value(self.pixel_std)

    def _decoder_input(self, latent: Tensor) -> Tensor:
        """Return the encoder's tokens for the decoder: without the class token if the decoder takes none."""
        return latent[:, self.encoder.num_prefix_tokens - self.decoder.num_prefix_tokens :]

    def _hidden(self, pred: Tensor, patches: Tensor, masks: Mask, latent: Tensor) -> HiddenPatches:
        return HiddenPatches(pred, self.target(gather_tokens(patches, masks.ids_masked)), latent)

    def _target_space(self, patches: Tensor) -> Tensor:
        """Return the pixels that targets are made of: in [0, 1] with `pixel_mean`, else `patches` unchanged."""
        if self.pixel_mean is None or self.pixel_std is None:
            return patches
        return patches * self._per_value(self.pixel_std) + self._per_value(self.pixel_mean)

    def _per_value(self, channels: tuple[float, ...]) -> Tensor:
        """Return one number per channel, repeated for all pixels of a patch: [P*P*C], channel fastest."""
        return paddle.to_tensor(channels * (self.patch_size * self.patch_size), dtype="float32")

    @initializes
    def _initialize_as_torch(self) -> None:
        """Initialize patch embedding, bridge and tokens as `torch_init` says.

        PyTorch's default is U(-b, b) with b = fan_in**-0.5 for weights and biases.
        """
        proj, bridge = self.encoder.patch_embed.proj, self.decoder.embed
        for layer, inputs in ((proj, math.prod(proj.weight.shape[1:])), (bridge, bridge.weight.shape[0])):
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.uniform_(-(inputs**-0.5), inputs**-0.5)
        for token in (self.encoder.cls_token, self.decoder.mask_token):
            if token is not None:
                truncated_normal(token)

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode whole images, without a mask: [B, C, H, W] -> [B, 1 + L, D], or [B, L, D] without a class token."""
        return self.encoder.forward_features(images)

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images into patches: [B, C, H, W] -> [B, L, P*P*C]."""
        return patchify(images, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Put patches back into images: [B, L, P*P*C] -> [B, C, H, W]."""
        return unpatchify(patches, self.encoder.grid, self.patch_size)

    def num_visible(self, mask_ratio: float) -> int:
        """Return the number of patches of an image that the encoder sees at `mask_ratio`."""
        return num_visible(self.encoder.num_patches, mask_ratio, self.round_down)

    def forward_macs(self, mask_ratio: float = 0.75) -> int:
        """Count the multiply-accumulates of one image's forward pass.

        As in the original code, all patches are embedded and all are predicted. Patch embedding, linear layers and
        attention products are counted. Our training computes a little less: it embeds only visible patches, and the
        last decoder block and the head compute outputs only for hidden patches.
        """
        encoder, decoder = self.encoder, self.decoder
        visible = self.num_visible(mask_ratio)
        seen, decoded = visible + decoder.num_prefix_tokens, encoder.num_patches + decoder.num_prefix_tokens
        macs = encoder.forward_macs(visible + encoder.num_prefix_tokens) + seen * decoder.embed.weight.size
        macs += sum(block.macs(decoded) for block in decoder.blocks)
        return int(macs + decoded * decoder.pred.weight.size)
