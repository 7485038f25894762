"""The Vision Transformer that every method here encodes with (Dosovitskiy et al. 2021).

B batch, L patches, K visible patches, D width, P patch size, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.layers import (
    INIT_STD,
    LAYER_NORM_EPS,
    Block,
    PatchEmbed,
    drop_path_rates,
    dropout,
    gather_tokens,
    layer_norm,
    patchify,
)
from plsc_mae.models.pos_embed import sincos_2d, sinusoid_1d
from plsc_mae.models.rel_pos_bias import RelativePositionBias

NO_CLASS_TOKEN = "the network has no class token; take the mean of its patches (mean instead of cls)"
Positions = Literal["column first", "row first", "sinusoid", "learned", "none"]
RelativePositions = Literal["none", "per block", "shared"]


def pair(size: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Height and width of a side, a 1-tuple or a pair."""
    if isinstance(size, int):
        return size, size
    return size[0], size[-1]


def patch_grid(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ConfigError: the image cannot be cut into whole patches.
    """
    for side in img_size:
        if side % patch_size:
            lower = side // patch_size * patch_size
            near = f"{lower} or {lower + patch_size}" if lower else str(patch_size)
            raise ConfigError(f"input_size {side} is not a multiple of patch_size {patch_size}; use {near}")
    return img_size[0] // patch_size, img_size[1] // patch_size


def check_heads(name: str, dim: int, num_heads: int) -> None:
    """Raise ConfigError unless the width divides into heads and into the four parts of the position table."""
    if dim % num_heads or dim % 4:
        raise ConfigError(f"{name} {dim} must be a multiple of 4 and of its number of heads ({num_heads})")


def token_parameter(layer: nn.Layer, dim: int, count: int = 1) -> Tensor:
    """Make learned tokens [1, count, D], normal with std 0.02 and no truncation (facebookresearch/mae)."""
    return layer.create_parameter([1, count, dim], default_initializer=nn.initializer.Normal(std=INIT_STD))


def fixed_table(
    dim: int, grid: tuple[int, int], *, positions: Positions = "column first", class_token: bool = True
) -> Tensor:
    """A computed table [1, 1 + L, D], or [1, L, D] without a class token, as a tensor that is never trained."""
    if positions == "sinusoid":
        table = sinusoid_1d(dim, grid[0] * grid[1], class_token=class_token)
    else:
        table = sincos_2d(dim, grid, class_token=class_token, row_first=positions == "row first")
    return paddle.to_tensor(table[None].astype(np.float32))


def set_positions(
    layer: nn.Layer, dim: int, grid: tuple[int, int], positions: Positions, num_prefix_tokens: int
) -> None:
    """Give a network its `pos_embed`, a parameter or a buffer [1, prefix + L, D], or None."""
    if positions == "none":
        layer.pos_embed = None
    elif positions == "learned":
        layer.pos_embed = token_parameter(layer, dim, num_prefix_tokens + grid[0] * grid[1])
    else:
        table = fixed_table(dim, grid, positions=positions, class_token=bool(num_prefix_tokens))
        layer.register_buffer("pos_embed", table, persistable=positions != "sinusoid")


def train_tables(*layers: nn.Layer) -> None:
    """Let the computed tables of networks be parameters that start from them (LiBai)."""
    for layer in layers:
        table = layer.pos_embed
        del layer.pos_embed
        init = nn.initializer.Assign(table.numpy())
        layer.pos_embed = layer.create_parameter(table.shape, default_initializer=init)


class VisionTransformer(nn.Layer):
    """A ViT encoder.

    Args:
        img_size: image side, or height and width, in pixels.
        patch_size: patch side in pixels.
        in_chans: image channels.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        drop_path: stochastic depth rate of the last block; it rises linearly from 0.
        layer_scale: initial value of the layer scales; none when not positive.
        k_bias: whether keys have a bias; MAE has one, BEiT and CAE have none.
        positions: sin-cos table that encodes the column first (MAE) or the row first (CAE, MAE-priv), or the
            one-dimensional sinusoid (MAE-pytorch, not saved), or a learned one, or none.
        relative_positions: a relative position bias for each block, one for all, or none; whole images only.
        final_norm: whether a layer norm follows the blocks.
        class_token: whether a class token leads the patches.
        drop_rate: dropout of embedded tokens and of what attention and MLP give.
        attn_drop_rate: dropout of softmax weights.
        norm_eps: eps of the blocks' layer norms (LiBai: 1e-5); the final norm keeps 1e-6.

    Raises:
        ConfigError: the image is no whole number of patches, or the width no whole number of heads; relative positions
            without a class token.
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
        *,
        layer_scale: float = 0.0,
        k_bias: bool = True,
        positions: Positions = "column first",
        relative_positions: RelativePositions = "none",
        final_norm: bool = True,
        class_token: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        check_heads("embed_dim", embed_dim, num_heads)
        if relative_positions != "none" and not class_token:
            raise ConfigError(f"relative_positions '{relative_positions}' needs a class token")
        self.img_size, self.patch_size, self.embed_dim = pair(img_size), patch_size, embed_dim
        self.grid = patch_grid(self.img_size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.num_prefix_tokens = int(class_token)
        self.cls_token = token_parameter(self, embed_dim) if class_token else None
        self.positions, self.drop_rate = positions, drop_rate
        set_positions(self, embed_dim, self.grid, positions, self.num_prefix_tokens)
        self.rel_pos_bias = RelativePositionBias(self.grid, num_heads) if relative_positions == "shared" else None
        options: dict[str, Any] = {"layer_scale": layer_scale, "k_bias": k_bias}
        options |= {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate, "norm_eps": norm_eps}
        options["grid"] = self.grid if relative_positions == "per block" else None
        self.blocks = nn.LayerList(
            [Block(embed_dim, num_heads, mlp_ratio, rate, **options) for rate in drop_path_rates(drop_path, depth)]
        )
        self.norm = layer_norm(embed_dim) if final_norm else nn.Identity()

    @property
    def num_patches(self) -> int:
        """L, the patches of one image."""
        return self.grid[0] * self.grid[1]

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode every patch; never masks. [B, C, H, W] -> [B, 1 + L, D], the class token first, where there is one."""
        return self.encode(patchify(images, self.patch_size))

    def forward_layers(self, images: Tensor) -> list[Tensor]:
        """Tokens [B, 1 + L, D] after the embedding and after each block: depth + 1 of them, without the final norm."""
        states = [self.embed(images)]
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            states.append(block(states[-1], bias=bias))
        return states

    def encode(self, patches: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode patches, or the visible ones among them; the rest is not even embedded.

        Args:
            patches: [B, L, P*P*C] as `patchify` cuts them.
            ids_keep: [B, K] patches to encode, in the order wanted; all of them when None.

        Returns:
            [B, 1 + K, D], the class token first, or [B, K, D] without one; after the final norm.

        Raises:
            ValueError: another number of patches than the network is made for.
        """
        if patches.shape[1] != self.num_patches:
            raise ValueError(
                f"the network is made for {self.img_size[0]}x{self.img_size[1]} pixels, {self.num_patches} patches, "
                f"and got {patches.shape[1]} patches; give img_size for other images"
            )
        return self.norm(self.transform(self._tokens(patches, ids_keep)))

    def embed(self, images: Tensor) -> Tensor:
        """What the first block gets of whole images: [B, C, H, W] -> [B, 1 + L, D]."""
        return self._tokens(patchify(images, self.patch_size), None)

    def transform(self, x: Tensor) -> Tensor:
        """Send tokens [B, N, D] through the blocks, without the final norm."""
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            x = block(x, bias=bias)
        return x

    def _tokens(self, patches: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Class token, where there is one, and embedded patches with their positions, [B, 1 + K, D]."""
        batch, first = patches.shape[0], self.num_prefix_tokens
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)
        tokens, cls = self.patch_embed(patches), self.cls_token
        if self.pos_embed is not None:
            cls = None if cls is None else cls + self.pos_embed[:, :1]
            table = self.pos_embed[:, first:]
            if ids_keep is not None:
                table = paddle.gather(table[0], ids_keep.reshape([-1])).reshape([batch, -1, self.embed_dim])
            tokens = tokens + table
        if cls is not None:
            tokens = paddle.concat([cls.expand([batch, 1, self.embed_dim]), tokens], axis=1)
        return dropout(tokens, self.drop_rate if self.training else 0.0)

    def forward_macs(self, tokens: int) -> int:
        """Multiply-accumulates of encoding one image's tokens, the class token counted, with all patches embedded."""
        return int(self.num_patches * self.patch_embed.proj.weight.size + sum(b.macs(tokens) for b in self.blocks))
