"""The context autoencoder (Chen et al. 2022) of Atten4Vis/CAE and its ports.

B batch, L patches, V visible, M hidden (L = V + M), C encoder width, D width of regressor and decoder, K outputs for a
hidden patch, for example classes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.masking import split_mask
from plsc_mae.models.deterministic import table_rows
from plsc_mae.models.layers import (
    Block,
    CrossAttention,
    DropPath,
    Linear,
    Mlp,
    add_residual,
    attention_macs,
    constant_parameter,
    copy_to_group,
    drop_path_rates,
    initializes,
    layer_norm,
    linear,
    patchify,
    require_mask_of,
    scaled,
    truncated_normal,
)
from plsc_mae.models.recompute import Recomputable
from plsc_mae.models.vit import VisionTransformer, fixed_table, token_parameter


class CAEOutput(NamedTuple):
    """The result of a forward pass of `ContextAutoencoder`; hidden patches are in raster order, image by image."""

    logits: Tensor  # [B*M, K] predictions of the targets, in the order of `tokens[mask]`
    latent: Tensor  # [B, M, D] representations of hidden patches, predicted from the visible ones
    latent_target: Tensor  # [B, M, D] alignment target, see `ContextAutoencoder`; without gradient
    encoded: Tensor  # [B, 1 + V, C] the encoder's representations of the visible patches, class token first


class RegressorBlock(Recomputable):
    """A block of cross-attention from hidden patches to all patches, followed by an MLP.

    Unlike in a pre-norm block, the output of the second norm replaces the residual stream.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = (layer_norm(dim) for _ in range(3))
        self.cross_attn = CrossAttention(dim, num_heads)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = constant_parameter(self, dim, layer_scale if layer_scale > 0 else 1.0)
        self.gamma_2 = constant_parameter(self, dim, layer_scale if layer_scale > 0 else 1.0)
        # Without layer scale the original keeps frozen gammas of 1 here.
        self.gamma_1.stop_gradient = self.gamma_2.stop_gradient = layer_scale <= 0

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor, placed_visible: Tensor) -> Tensor:
        """Return refined predictions [B, M, D] of hidden patches.

        `x` [B, M, D] are the predictions so far and `positions` [B, M, D] the position embeddings of the same patches;
        `visible` [B, V, D] are the visible patches, `placed_visible` the same with position embeddings.
        """
        attn, placed = self.cross_attn, x + positions
        queries = self.norm_q(placed)
        keys = self.norm_k(paddle.concat([placed_visible, placed], axis=1))
        values = self.norm_v(paddle.concat([visible, x], axis=1))
        queries, keys, values = (copy_to_group(attn.exchange, tokens) for tokens in (queries, keys, values))
        attended = attn(
            linear(queries, attn.q.weight, attn.q_bias),
            linear(keys, attn.k.weight, None),
            linear(values, attn.v.weight, attn.v_bias),
        )
        x = self.norm2(add_residual(x, self.drop_path(scaled(attended, self.gamma_1))))
        return add_residual(x, self.drop_path(scaled(self.mlp(x), self.gamma_2)))

    def macs(self, hidden: int, patches: int) -> int:
        """Count the multiply-accumulates for one image with `hidden` of its `patches` patches hidden.

        Linear layers and attention products are counted.
        """
        attn = self.cross_attn
        per_query = (attn.q, attn.proj, self.mlp.fc1, self.mlp.fc2)
        macs = hidden * sum(layer.weight.size for layer in per_query)
        macs += patches * (attn.k.weight.size + attn.v.weight.size)
        return int(macs + attention_macs(attn, hidden, patches))


class Regressor(nn.Layer):
    """A stack of blocks that predicts the representations of hidden patches from the visible patches."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path: float, layer_scale: float
    ) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.LayerList([RegressorBlock(dim, num_heads, mlp_ratio, rate, layer_scale) for rate in rates])
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor, visible_positions: Tensor) -> Tensor:
        """Predict hidden patches [B, M, D] from queries `x` [B, M, D] and `visible` [B, V, D].

        `positions` [B, M, D] are the position embeddings of the hidden patches, `visible_positions` [B, V, D] those of
        the visible ones.
        """
        placed_visible = visible + visible_positions
        for block in self.blocks:
            x = block(x, positions, visible, placed_visible)
        return self.norm(x)


class TokenDecoder(nn.Layer):
    """The decoder of hidden patches: self-attention blocks over their predicted representations, and a linear head."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.LayerList(
            [
                Block(dim, num_heads, mlp_ratio, rate, layer_scale=layer_scale, k_bias=False)
                for rate in drop_path_rates(drop_path, depth)
            ]
        )
        self.norm = layer_norm(dim) if depth else None
        self.head = Linear(dim, num_classes)

    def forward(self, latent: Tensor, positions: Tensor) -> Tensor:
        """Return outputs [B, M, K] for `latent` [B, M, D] and position embeddings [B, M, D].

        Without blocks only the head is applied, and the position embeddings are ignored (PLSC).
        """
        if self.norm is None:
            return self.head(latent)
        x = latent + positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def cae_encoder(
    img_size: int | tuple[int, ...], layer_scale_init_value: float, abs_pos_emb: bool, **sizes: Any
) -> VisionTransformer:
    """Build CAE's encoder: a ViT whose keys have no bias, with layer scale if its initial value is positive.

    Its position table is learned with `abs_pos_emb`, else sin-cos with the row first. `sizes` are further arguments of
    `VisionTransformer`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    return VisionTransformer(
        img_size,
        layer_scale=layer_scale_init_value,
        k_bias=False,
        positions="learned" if abs_pos_emb else "row first",
        **sizes,
    )


class ContextAutoencoder(nn.Layer):
    """CAE: an encoder of visible patches, a regressor of hidden representations, and a decoder from these to targets.

    The alignment target is the encoder's own representation of the hidden patches, without gradient, because the
    original's alignment encoder shares the encoder's storage. With `dual_path_ema` > 0 a moving average of the encoder
    computes the target instead.

    Args:
        img_size: image side, or height and width, in pixels.
        patch_size: patch side in pixels.
        in_chans: image channels.
        embed_dim: encoder width C.
        depth: encoder blocks.
        num_heads: encoder heads.
        mlp_ratio: ratio of hidden width to block width in all MLPs.
        drop_path: stochastic depth rate of the last block of each of the three stacks, see `drop_path_rates`.
        layer_scale_init_value: initial layer scale of the encoder; 0 for no layer scale.
        abs_pos_emb: whether the encoder's position table is learned instead of the fixed sin-cos table.
        decoder_embed_dim: width D of regressor and decoder; if it is not C, a linear layer and a norm map C to D.
        regressor_depth: regressor blocks.
        num_decoder_self_attention: decoder blocks.
        decoder_num_heads: heads of regressor and decoder.
        decoder_num_classes: number of outputs K for a hidden patch, for example the size of the tokenizer's vocabulary.
        decoder_layer_scale_init_value: initial layer scale of regressor and decoder; 0 for no layer scale.
        dual_path_ema: decay of the moving average that computes the alignment target; 0 uses the encoder itself.
        rescale_init: whether to keep the normal initialization with rescaled residual branches. By default, as in the
            original, xavier-uniform overwrites it in every linear layer.

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
        layer_scale_init_value: float = 0.1,
        abs_pos_emb: bool = False,
        decoder_embed_dim: int = 768,
        regressor_depth: int = 4,
        num_decoder_self_attention: int = 4,
        decoder_num_heads: int = 12,
        decoder_num_classes: int = 8192,
        decoder_layer_scale_init_value: float = 0.1,
        dual_path_ema: float = 0.0,
        rescale_init: bool = False,
    ) -> None:
        super().__init__()
        if decoder_embed_dim % 4 or decoder_embed_dim < decoder_num_heads:
            raise ConfigError(
                f"decoder_embed_dim {decoder_embed_dim} must be a multiple of 4 and no less than decoder_num_heads "
                f"({decoder_num_heads})"
            )

        sizes: dict[str, Any] = {"patch_size": patch_size, "in_chans": in_chans, "embed_dim": embed_dim, "depth": depth}
        sizes |= {"num_heads": num_heads, "mlp_ratio": mlp_ratio, "drop_path": drop_path}
        bridged = decoder_embed_dim != embed_dim
        stack = (decoder_num_heads, mlp_ratio, drop_path, decoder_layer_scale_init_value)
        self.patch_size = patch_size
        self.encoder = cae_encoder(img_size, layer_scale_init_value, abs_pos_emb, **sizes)
        self.bridge = Linear(embed_dim, decoder_embed_dim) if bridged else None
        self.bridge_norm = layer_norm(decoder_embed_dim) if bridged else None
        self.mask_token = token_parameter(self, decoder_embed_dim)
        self.rd_pos_embed: Tensor | None
        if abs_pos_emb and not bridged:
            self.rd_pos_embed = None  # regressor and decoder read the encoder's learned table (PLSC)
        else:
            self.register_buffer(
                "rd_pos_embed", fixed_table(decoder_embed_dim, self.encoder.grid, positions="row first")
            )
        self.regressor = Regressor(decoder_embed_dim, regressor_depth, *stack)
        self.decoder = TokenDecoder(decoder_embed_dim, num_decoder_self_attention, *stack, decoder_num_classes)
        self._initialize(rescale_init)

        self.dual_path_ema = dual_path_ema
        self.alignment_encoder: VisionTransformer | None = None
        if dual_path_ema > 0:
            self.alignment_encoder = cae_encoder(img_size, layer_scale_init_value, abs_pos_emb, **sizes)
            self.start_alignment()
            for param in self.alignment_encoder.parameters():
                param.stop_gradient = True

    def forward(self, images: Tensor, mask: Tensor, num_masked: int | None = None) -> CAEOutput:
        """Predict the hidden patches of images.

        Args:
            images: [B, C, H, W], normalized.
            mask: bool [B, L], True = hidden; every image hides the same number.
            num_masked: the number M of hidden patches per image. None reads it from the mask, which waits for the
                device.

        Raises:
            ValueError: the images do not have the network's number of patches, or a side is not a multiple of
                `patch_size`; the mask does not have one entry per patch; all or no patches are hidden, or images hide
                different numbers of patches. `num_masked` is trusted: with it, the mask's own number is not checked.
        """
        patches = patchify(images, self.patch_size)
        require_mask_of(patches, mask)
        ids_keep, ids_masked = split_mask(mask, num_masked)
        encoded = self.encoder.encode(patches, ids_keep)
        visible = self._bridged(encoded[:, 1:])
        table = self.encoder.pos_embed if self.rd_pos_embed is None else self.rd_pos_embed
        positions, visible_positions = _table_rows(table, ids_masked), _table_rows(table, ids_keep)
        queries = self.mask_token.expand([*ids_masked.shape, self.mask_token.shape[-1]])
        latent = self.regressor(queries, positions, visible, visible_positions)
        logits = self.decoder(latent, positions)
        return CAEOutput(logits.flatten(0, 1), latent, self._alignment_target(patches, ids_masked), encoded)

    @paddle.no_grad()
    def update_alignment(self) -> None:
        """Update the moving average of the encoder, if there is one; call this after every optimizer step.

        Every averaged parameter becomes `dual_path_ema` times itself plus (1 - `dual_path_ema`) times the encoder's.
        """
        if self.alignment_encoder is None:
            return
        targets, sources = self.alignment_encoder.parameters(), self.encoder.parameters()
        shares = {dtype: paddle.full([1], 1.0 - self.dual_path_ema, dtype) for dtype in {x.dtype for x in targets}}
        for target, source in zip(targets, sources, strict=True):
            target.lerp_(source, shares[target.dtype])

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode whole images, without a mask: [B, channels, H, W] -> [B, 1 + L, C]."""
        return self.encoder.forward_features(images)

    def forward_macs(self, num_masked: int) -> tuple[int, int]:
        """Return the multiply-accumulates of one image's forward pass as the original runs it: (student, alignment).

        The student is encoder, regressor and decoder; the alignment is the encoder applied to the hidden patches. Both
        include the layer between encoder and regressor, if there is one.
        """
        patches = self.encoder.num_patches
        student = self.encoder.forward_macs(patches - num_masked + 1)
        alignment = self.encoder.forward_macs(num_masked + 1)
        if self.bridge is not None:
            student += (patches - num_masked + 1) * self.bridge.weight.size
            alignment += (num_masked + 1) * self.bridge.weight.size
        student += sum(block.macs(num_masked, patches) for block in self.regressor.blocks)
        student += sum(block.macs(num_masked) for block in self.decoder.blocks)
        return int(student + num_masked * self.decoder.head.weight.size), int(alignment)

    @initializes
    def start_alignment(self) -> None:
        """Set the moving average of the encoder, if there is one, to the encoder's weights."""
        if self.alignment_encoder is not None:
            self.alignment_encoder.set_state_dict(self.encoder.state_dict())

    def _bridged(self, x: Tensor) -> Tensor:
        return x if self.bridge is None or self.bridge_norm is None else self.bridge_norm(self.bridge(x))

    @paddle.no_grad()
    def _alignment_target(self, patches: Tensor, ids_masked: Tensor) -> Tensor:
        """Return the alignment target [B, M, D] for the hidden patches `ids_masked` [B, M].

        In training, its drop path draws independently of the student's drop path.
        """
        encoder = self.encoder if self.alignment_encoder is None else self.alignment_encoder
        # Programs traced by Paddle 2.6 ignore `no_grad`.
        return self._bridged(encoder.encode(patches, ids_masked)[:, 1:]).detach()

    @initializes
    def _initialize(self, rescale_init: bool) -> None:
        """Set the initial values; the constructor has already made linear layers xavier-uniform."""
        truncated_normal(self.encoder.patch_embed.proj.weight)
        self.encoder.patch_embed.proj.bias.zero_()
        truncated_normal(self.encoder.cls_token)
        truncated_normal(self.mask_token)
        table = self.encoder.pos_embed
        if table is not None and not table.stop_gradient:
            truncated_normal(table)
        if not rescale_init:
            return
        for layer in self.sublayers():
            if isinstance(layer, Linear):
                truncated_normal(layer.weight)
        if self.bridge is not None:  # PyTorch's default; the original initializes its three stacks only
            bound = self.bridge.weight.shape[0] ** -0.5
            self.bridge.weight.uniform_(-bound, bound)
            self.bridge.bias.uniform_(-bound, bound)
        for blocks in (self.encoder.blocks, self.regressor.blocks, self.decoder.blocks):
            for i, block in enumerate(blocks):
                attn = block.attn if isinstance(block, Block) else block.cross_attn
                for weight in (attn.proj.weight, block.mlp.fc2.weight):
                    weight.set_value(weight / math.sqrt(2.0 * (i + 1)))


def _table_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Look up the rows [B, K, D] of patch ids [B, K] in `table` [1, 1 + L, D], whose row 0 is the class token's."""
    return table_rows(table[0], ids + 1)
