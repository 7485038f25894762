"""The Vision Transformer, the encoder of every method (Dosovitskiy et al. 2021).

B batch, L patches, K visible patches, D width, P patch size, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.attention import dropout
from plsc_mae.models.deterministic import table_rows
from plsc_mae.models.layers import (
    INIT_STD,
    LAYER_NORM_EPS,
    Block,
    PatchEmbed,
    drop_path_rates,
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
    """Return (height, width) for a size written as one number, a sequence of one, or a pair."""
    if isinstance(size, int):
        return size, size
    return size[0], size[-1]


def patch_grid(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the number of rows and columns of patches of an image of `img_size` = (height, width) pixels.

    Raises:
        ConfigError: a side is not a multiple of the patch size.
    """
    for side in img_size:
        if side % patch_size:
            lower = side // patch_size * patch_size
            near = f"{lower} or {lower + patch_size}" if lower else str(patch_size)
            raise ConfigError(f"input_size {side} is not a multiple of patch_size {patch_size}; use {near}")
    return img_size[0] // patch_size, img_size[1] // patch_size


def check_heads(name: str, dim: int, num_heads: int) -> None:
    """Raise ConfigError unless `dim` is a multiple of `num_heads` and of 4, which sin-cos position tables need."""
    if dim % num_heads:
        raise ConfigError(f"{name} {dim} must be a multiple of the number of its attention heads, {num_heads}")
    if dim % 4:
        raise ConfigError(f"{name} {dim} must be a multiple of 4")


def token_parameter(layer: nn.Layer, dim: int, count: int = 1) -> Tensor:
    """Create trainable tokens [1, count, D] of `layer`, normal with std 0.02, not truncated (facebookresearch/mae)."""
    return layer.create_parameter([1, count, dim], default_initializer=nn.initializer.Normal(std=INIT_STD))


def fixed_table(
    dim: int, grid: tuple[int, int], *, positions: Positions = "column first", class_token: bool = True
) -> Tensor:
    """Return a fixed position table, float32 [1, 1 + L, D], or [1, L, D] without a class token.

    Raises:
        ValueError: `dim` is not a multiple of 4, except for "sinusoid", which accepts any.
    """
    if positions == "sinusoid":
        table = sinusoid_1d(dim, grid[0] * grid[1], class_token=class_token)
    else:
        table = sincos_2d(dim, grid, class_token=class_token, row_first=positions == "row first")
    return paddle.to_tensor(table[None].astype(np.float32))


def set_positions(
    layer: nn.Layer, dim: int, grid: tuple[int, int], positions: Positions, num_prefix_tokens: int
) -> None:
    """Set `pos_embed` of a layer to a table [1, T + L, D], a parameter if learned, else a buffer; to None for "none".

    T = `num_prefix_tokens` is the number of rows for tokens that precede the patches. A fixed table has at most one
    such row, which consists of zeros.
    """
    if positions == "none":
        layer.pos_embed = None
    elif positions == "learned":
        layer.pos_embed = token_parameter(layer, dim, num_prefix_tokens + grid[0] * grid[1])
    else:
        table = fixed_table(dim, grid, positions=positions, class_token=bool(num_prefix_tokens))
        layer.register_buffer("pos_embed", table, persistable=positions != "sinusoid")


def train_tables(*layers: nn.Layer) -> None:
    """Replace the fixed position tables of layers by parameters with the same initial values (LiBai)."""
    for layer in layers:
        table = layer.pos_embed
        del layer.pos_embed
        init = nn.initializer.Assign(table.numpy())
        layer.pos_embed = layer.create_parameter(table.shape, default_initializer=init)


class VisionTransformer(nn.Layer):
    """The encoder of a Vision Transformer.

    Args:
        img_size: image side, or height and width, in pixels.
        patch_size: patch side in pixels.
        in_chans: image channels.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLP's hidden width to D.
        drop_path: stochastic depth rate of the last block, see `drop_path_rates`.
        layer_scale: initial value of the layer scales; 0 for no layer scale.
        k_bias: whether keys have a bias; those of BEiT and CAE have none.
        positions: kind of position table: sin-cos with the column first (MAE) or the row first (CAE, MAE-priv), the
            one-dimensional sinusoid (MAE-pytorch, not saved), learned, or none.
        relative_positions: relative position biases, one per block, one shared by all, or none. With them the encoder
            takes whole images only.
        final_norm: whether a layer norm follows the blocks.
        class_token: whether a class token precedes the patches.
        drop_rate: dropout rate of embedded tokens and of the outputs of attention and MLP.
        attn_drop_rate: dropout rate of the softmax weights.
        norm_eps: eps of the blocks' layer norms (LiBai: 1e-5); that of the final norm is 1e-6.
        qk_norm: whether attention normalizes queries and keys, see `Attention`.
        register_tokens: number R of learned tokens between the class token and the patches (Darcet et al. 2024).
        prefix_positions: number of leading tokens that have a row in the position table: 0, the number of class
            tokens (0 or 1), or the number of class and register tokens. None means the number of class tokens.

    Raises:
        ConfigError: a side is not a multiple of the patch size, or the width not a multiple of 4 and of the number of
            heads; relative positions without a class token, or with register tokens.
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
        qk_norm: bool = False,
        register_tokens: int = 0,
        prefix_positions: int | None = None,
    ) -> None:
        super().__init__()
        check_heads("embed_dim", embed_dim, num_heads)
        if relative_positions != "none" and (not class_token or register_tokens):
            needed = "a class token" if not class_token else "a network without register tokens"
            raise ConfigError(f"relative_positions '{relative_positions}' needs {needed}")
        self.img_size, self.patch_size, self.embed_dim = pair(img_size), patch_size, embed_dim
        self.grid = patch_grid(self.img_size, patch_size)
        self.in_chans = in_chans
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.num_prefix_tokens = int(class_token) + register_tokens
        self.cls_token = token_parameter(self, embed_dim) if class_token else None
        self.register_tokens = token_parameter(self, embed_dim, register_tokens) if register_tokens else None
        self.positions, self.drop_rate = positions, drop_rate
        self.prefix_positions = int(class_token) if prefix_positions is None else prefix_positions
        set_positions(self, embed_dim, self.grid, positions, self.prefix_positions)
        self.rel_pos_bias = RelativePositionBias(self.grid, num_heads) if relative_positions == "shared" else None
        options: dict[str, Any] = {"layer_scale": layer_scale, "k_bias": k_bias}
        options |= {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate, "norm_eps": norm_eps, "qk_norm": qk_norm}
        options["grid"] = self.grid if relative_positions == "per block" else None
        self.blocks = nn.LayerList(
            [Block(embed_dim, num_heads, mlp_ratio, rate, **options) for rate in drop_path_rates(drop_path, depth)]
        )
        self.norm = layer_norm(embed_dim) if final_norm else nn.Identity()

    @property
    def num_patches(self) -> int:
        """The number of patches of an image, L."""
        return self.grid[0] * self.grid[1]

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode whole images, without a mask: [B, C, H, W] -> [B, T + L, D], T = `num_prefix_tokens`.

        Raises:
            ValueError: a side of the images is not a multiple of P, or the number of patches is not the network's.
        """
        return self.encode(patchify(images, self.patch_size))

    def forward_layers(self, images: Tensor) -> list[Tensor]:
        """Return the tokens [B, T + L, D] of images [B, C, H, W] after the embedding and after each block, in order.

        The list has depth + 1 tensors, all before the final norm.
        """
        states = [self.embed(images)]
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            states.append(block(states[-1], bias=bias))
        return states

    def encode(self, patches: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode all patches, or only the visible ones.

        Args:
            patches: [B, L, P*P*C] from `patchify`.
            ids_keep: int64 [B, K], the patches to encode, in this order; None for all. Other patches are not embedded.

        Returns:
            Tokens [B, T + K, D] after the final norm, if there is one: class token, register tokens, patches. T is
            `num_prefix_tokens`.

        Raises:
            ValueError: the number of patches is not the network's.
        """
        if patches.shape[1] != self.num_patches:
            raise ValueError(
                f"the network is made for {self.img_size[0]}x{self.img_size[1]} pixels, {self.num_patches} patches, "
                f"and got {patches.shape[1]} patches; build it with another img_size"
            )
        return self.norm(self.transform(self._tokens(patches, ids_keep)))

    def embed(self, images: Tensor) -> Tensor:
        """Embed whole images, as input of the first block: [B, C, H, W] -> [B, T + L, D]."""
        return self._tokens(patchify(images, self.patch_size), None)

    def transform(self, x: Tensor) -> Tensor:
        """Return the output [B, N, D] of the last block for tokens [B, N, D], before the final norm."""
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            x = block(x, bias=bias)
        return x

    def _tokens(self, patches: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Return the input [B, T + K, D] of the first block: class token, registers and patches, positions added."""
        batch = patches.shape[0]
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)
        tokens = self.patch_embed(patches)
        if self.pos_embed is not None:
            table = self.pos_embed[:, self.prefix_positions :]
            if ids_keep is not None:
                table = table_rows(table[0], ids_keep)
            tokens = tokens + table
        prefix = [token.expand([batch, *token.shape[1:]]) for token in self._prefix_tokens()]
        if prefix:
            tokens = paddle.concat([*prefix, tokens], axis=1)
        return dropout(tokens, self.drop_rate if self.training else 0.0)

    def _prefix_tokens(self) -> list[Tensor]:
        """Return class token [1, 1, D] and registers [1, R, D], if they exist, plus their positions, if any."""
        tokens, first = [], 0
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                has_row = self.pos_embed is not None and first < self.prefix_positions
                tokens.append(token + self.pos_embed[:, first : first + token.shape[1]] if has_row else token)
                first += token.shape[1]
        return tokens

    def forward_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of one image: all patches are embedded, the blocks process `tokens` tokens.

        `tokens` includes class token and registers.
        """
        return int(self.num_patches * self.patch_embed.proj.weight.size + sum(b.macs(tokens) for b in self.blocks))
