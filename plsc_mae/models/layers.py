"""Layers that our ViTs share: linear, patch embedding, attention, MLP, block.

B batch, N tokens, D width, H heads, P patch size, C channels. Linear weights are [in, out], as Paddle stores them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.models.attention import attention, dropout
from plsc_mae.models.execution import contiguous, is_eager, on_cpu
from plsc_mae.models.gelu import gelu
from plsc_mae.models.norm import LayerNorm
from plsc_mae.models.recompute import Recomputable
from plsc_mae.models.rel_pos_bias import RelativePositionBias
from plsc_mae.models.tensor_split import HEADS, HIDDEN, TensorSplit

LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02


class _CPULinear(paddle.autograd.PyLayer):
    """The function `x @ weight + bias` for 2-D `x`, with the bias gradient computed as a matrix product.

    Paddle's CPU kernels add the bias in a second pass and sum its gradient element by element on one thread: forward
    and backward pass for [1576, 512] x [512, 2048] take 188 ms, here 132 ms (docs/benchmarks).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute `x @ weight + bias`: [N, in] -> [N, out]."""
        # Paddle 3.3.1: recompute drops the strides of saved views, so save contiguous copies.
        ctx.save_for_backward(x.contiguous(), weight.contiguous())
        ctx.wanted = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return paddle.addmm(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias; Paddle requires None for a frozen one."""
        x, weight = ctx.saved_tensor()
        wants_x, wants_weight, wants_bias = ctx.wanted
        ones = paddle.ones([1, grad.shape[0]], grad.dtype)
        return (
            paddle.matmul(grad, weight, transpose_y=True) if wants_x else None,
            paddle.matmul(x, grad, transpose_x=True) if wants_weight else None,
            paddle.matmul(ones, grad).reshape([-1]) if wants_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply `x @ weight + bias` to the last axis: [..., in] -> [..., out].

    In mixed precision the bias takes the dtype of the product. In Paddle 2.6, a float32 bias would make the sum float32
    again: attention would then not find its flash kernel, and GELU would compute in float32.

    A traced program gets the plain operators, which inference engines and compilers know.
    """
    if bias is None or not (is_eager(x) and on_cpu(x)):
        return add_bias(paddle.matmul(x, weight), bias)
    out = _CPULinear.apply(x.reshape([-1, x.shape[-1]]), weight, bias)
    return out.reshape([*x.shape[:-1], weight.shape[1]])


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x` plus a bias in the dtype of `x`; `x` itself if `bias` is None."""
    return x if bias is None else x + in_dtype(bias, x.dtype)


def in_dtype(values: Tensor, dtype: Any) -> Tensor:
    """Return `values` in `dtype`; if they have it, without a cast, for which Paddle 2.6 would launch a kernel."""
    return values if values.dtype == dtype else values.astype(dtype)


def xavier_uniform(fan_in: int, fan_out: int) -> nn.initializer.Initializer:
    """Return the initializer U(-b, b) with b = sqrt(6 / (fan_in + fan_out)).

    The caller gives the fans because Paddle computes those of a convolution kernel differently.
    """
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return nn.initializer.Uniform(-bound, bound)


class TensorParallelExchange(Protocol):
    """Collectives of the processes that share a layer's heads or hidden columns (Shoeybi et al. 2019).

    `parallel.tensor.GroupExchange` implements it.
    """

    def copy_to_group(self, x: Tensor) -> Tensor:
        """Return x unchanged; the backward pass all-reduces its gradient (Megatron's f); all processes must call."""
        ...

    def reduce_from_group(self, x: Tensor) -> Tensor:
        """All-reduce x; the backward pass leaves its gradient unchanged (Megatron's g); all processes must call."""
        ...


def copy_to_group(exchange: TensorParallelExchange | None, x: Tensor) -> Tensor:
    """Apply `exchange.copy_to_group` to x (all processes of `exchange` must call); without an exchange, return x."""
    return x if exchange is None else exchange.copy_to_group(x)


class Linear(nn.Linear):
    """A linear layer, initially with xavier-uniform weights and bias 0 (facebookresearch/mae `_init_weights`)."""

    # connects the processes among which the rows of the weights are divided; all must
    # call `forward`. None if all rows are here.
    exchange: TensorParallelExchange | None = None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        init = paddle.ParamAttr(initializer=xavier_uniform(in_features, out_features))
        super().__init__(in_features, out_features, weight_attr=init, bias_attr=None if bias else False)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to the last axis: [..., in] -> [..., out]."""
        if self.exchange is None:
            return linear(input, self.weight, self.bias)
        return self.exchange.reduce_from_group(linear(input, self.weight, None)) + self.bias


def layer_norm(dim: int, eps: float = LAYER_NORM_EPS) -> nn.LayerNorm:
    """Build a layer norm over the last axis, whose width is `dim`."""
    return LayerNorm(dim, epsilon=eps)


def only_declared(layer: nn.Layer) -> bool:
    """Return whether any parameter of a network has a shape but no values, as `paddle.LazyGuard` leaves it."""
    return any(not param._is_initialized() for param in layer.parameters())


def initializes(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method that fills parameters, so that no gradients are recorded.

    The wrapped method does nothing if any parameter of the network has no values yet, see `only_declared`.
    """

    @functools.wraps(method)
    def fill(network: nn.Layer, *arguments: Any) -> None:
        if not only_declared(network):
            with paddle.no_grad():
                method(network, *arguments)

    return fill


def constant_parameter(layer: nn.Layer, dim: int, value: float) -> Tensor:
    """Create a trainable vector [D] of `layer`, filled with `value`."""
    return layer.create_parameter([dim], default_initializer=nn.initializer.Constant(value))


def truncated_normal(param: Tensor, std: float = INIT_STD) -> None:
    """Fill a parameter in place from N(0, std^2) truncated to [-std, std].

    Atten4Vis/CAE, BUPT-PRIV/MAE-priv and MAE-pytorch use this initialization.
    """
    edge = math.erf(math.sqrt(0.5))  # the probability of [-std, std]
    param.set_value(paddle.erfinv(paddle.uniform(param.shape, param.dtype, -edge, edge)) * (std * math.sqrt(2.0)))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into flattened patches in raster order, channel fastest: [B, C, H, W] -> [B, L, P*P*C].

    Raises:
        ValueError: a side is not a multiple of the patch size.
    """
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"images of {height}x{width} pixels cannot be cut into patches of {patch_size} pixels")
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape([batch, channels, rows, patch_size, columns, patch_size])
    x = x.transpose([0, 2, 4, 3, 5, 1])  # [B, rows, columns, P, P, C]
    return x.reshape([batch, rows * columns, patch_size * patch_size * channels])


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches back into images, the inverse of `patchify`: [B, L, P*P*C] -> [B, C, H, W].

    `grid` is the number of (rows, columns) of patches.
    """
    batch, (rows, columns) = patches.shape[0], grid
    x = patches.reshape([batch, rows, columns, patch_size, patch_size, -1])
    x = x.transpose([0, 5, 1, 3, 2, 4])  # [B, C, rows, P, columns, P]
    return x.reshape([batch, -1, rows * patch_size, columns * patch_size])


def require_mask_of(patches: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless a mask [B, L] has one entry for each of `patches` [B, L, P*P*C].

    A traced program does not check: its batch size is unknown.
    """
    if is_eager(mask) and list(mask.shape) != list(patches.shape[:2]):
        raise ValueError(f"the mask has shape {list(mask.shape)}, the images {list(patches.shape[:2])} patches")


class PatchEmbed(nn.Layer):
    """The patch embedding as a matrix product; the caller can pass a subset of the patches, such as the visible ones.

    The kernel has the shape of a convolution, [D, C, P, P], as in the originals. It starts xavier-uniform with the
    fans of a [D, C*P*P] matrix; the bias has PyTorch's default for convolutions (facebookresearch/mae).
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        fan_in = in_chans * patch_size * patch_size
        self.proj = nn.Conv2D(
            in_chans,
            embed_dim,
            patch_size,
            stride=patch_size,
            weight_attr=paddle.ParamAttr(initializer=xavier_uniform(fan_in, embed_dim)),
            bias_attr=paddle.ParamAttr(initializer=nn.initializer.Uniform(-(fan_in**-0.5), fan_in**-0.5)),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embed flattened patches from `patchify`: [B, K, P*P*C] -> [B, K, D]."""
        dim, in_chans = self.proj.weight.shape[:2]
        # Permute the pixels, not the kernel: the gradient of a permuted kernel is a strided view, which Paddle's
        # DataParallel averages as if it were contiguous (3.3.1, tests/train/test_equality.py).
        pixels = patches.reshape([*patches.shape[:2], -1, in_chans]).transpose([0, 1, 3, 2])  # [B, K, C, P*P]
        out = paddle.matmul(pixels.flatten(2), self.proj.weight.reshape([dim, -1]), transpose_y=True)
        return add_bias(out, self.proj.bias)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split heads: [B, N, D] -> [B, H, N, D/H]."""
    return x.reshape([*x.shape[:2], num_heads, -1]).transpose([0, 2, 1, 3])


def merge_heads(x: Tensor) -> Tensor:
    """Merge heads: [B, H, N, D/H] -> [B, N, D]."""
    return x.transpose([0, 2, 1, 3]).flatten(2)


class Attention(nn.Layer):
    """Multi-head self-attention with one fused projection; the columns of `qkv` are q, k, v, each ordered by head.

    Args:
        dim: width D.
        num_heads: number of heads H. If H does not divide D, a head is D // H wide and a projection H * (D // H).
        k_bias: whether keys have a bias. Without it (BEiT, CAE) `q_bias` and `v_bias` are separate parameters
            and `qkv` has no bias. A bias of keys does not change the outputs, unless `qk_norm` is set, because it adds
            the same number to all logits of a query.
        grid: rows and columns of patches for a relative position bias; None for no such bias.
        drop_rate: dropout rate of the outputs.
        attn_drop_rate: dropout rate of the softmax weights.
        qk_norm: whether a layer norm follows the projection of queries and keys in every head (Dehghani et al. 2023;
            names as in timm). All heads share its scale and shift.
        norm_eps: eps of these norms.
    """

    # connects the processes that have the other heads; None if all heads are here
    exchange: TensorParallelExchange | None = None
    tensor_split = TensorSplit(HEADS, {"qkv.weight": 3, "qkv.bias": 3, "q_bias": 1, "v_bias": 1}, rows="proj")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        k_bias: bool = True,
        grid: tuple[int, int] | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        qk_norm: bool = False,
        norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.drop_rate, self.attn_drop_rate = drop_rate, attn_drop_rate
        self.rel_pos_bias = RelativePositionBias(grid, num_heads) if grid else None
        self.num_heads = num_heads
        inner = num_heads * (dim // num_heads)
        self.qkv = Linear(dim, 3 * inner, bias=k_bias)
        self.q_bias = None if k_bias else constant_parameter(self, inner, 0.0)
        self.v_bias = None if k_bias else constant_parameter(self, inner, 0.0)
        self.proj = Linear(inner, dim)
        self.q_norm = layer_norm(dim // num_heads, norm_eps) if qk_norm else None
        self.k_norm = layer_norm(dim // num_heads, norm_eps) if qk_norm else None

    def forward(self, x: Tensor, query: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attend from `query` [B, M, D] (None for all tokens of `x`) to `x` [B, N, D]; returns [B, M, D].

        `bias` [H, M, N] is added to the logits; it is ignored if the layer has a relative position bias of its own.
        """
        if self.rel_pos_bias is not None:
            bias = self.rel_pos_bias()
        x, query = copy_to_group(self.exchange, x), None if query is None else copy_to_group(self.exchange, query)
        weight, shift = self.qkv.weight, self._qkv_bias()
        if query is None:
            q, k, v = self._heads(linear(x, weight, shift), 3)
        else:
            inner = weight.shape[1] // 3
            (q,) = self._heads(linear(query, weight[:, :inner], shift[:inner]), 1)
            k, v = self._heads(linear(x, weight[:, inner:], shift[inner:]), 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = in_dtype(self.q_norm(q), v.dtype), in_dtype(self.k_norm(k), v.dtype)
        attn_drop, drop = (self.attn_drop_rate, self.drop_rate) if self.training else (0.0, 0.0)
        return dropout(self.proj(merge_heads(attention(q, k, v, bias, attn_drop))), drop)

    def _qkv_bias(self) -> Tensor:
        if self.q_bias is None:
            return self.qkv.bias
        return paddle.concat([self.q_bias, paddle.zeros_like(self.q_bias), self.v_bias])

    def _heads(self, x: Tensor, parts: int) -> list[Tensor]:
        """Split [B, N, parts*D] into `parts` tensors [B, H, N, D/H]."""
        batch, tokens, width = x.shape
        x = x.reshape([batch, tokens, parts, self.num_heads, width // (parts * self.num_heads)])
        # One copy here; as strided views, every use of q, k and v in the forward and backward pass would copy them.
        return list(paddle.unbind(contiguous(x.transpose([2, 0, 3, 1, 4])), axis=0))


class CrossAttention(nn.Layer):
    """Multi-head attention with separate projections and no bias on keys (Atten4Vis/CAE).

    If H does not divide D, a head is D // H wide, as in the original.
    """

    # connects the processes that have the other heads; None if all heads are here. The caller
    # applies `copy_to_group` to its tokens before it projects them to q, k and v.
    exchange: TensorParallelExchange | None = None
    tensor_split = TensorSplit(
        HEADS, {"q.weight": 1, "k.weight": 1, "v.weight": 1, "q_bias": 1, "v_bias": 1}, rows="proj"
    )

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * (dim // num_heads)
        self.q, self.k, self.v = (Linear(dim, inner, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = constant_parameter(self, inner, 0.0), constant_parameter(self, inner, 0.0)
        self.proj = Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from projected q [B, M, I] to projected k, v [B, N, I] with I = H * (D // H); returns [B, M, D]."""
        q, k, v = (split_heads(x, self.num_heads) for x in (q, k, v))
        return self.proj(merge_heads(attention(q, k, v)))


class Mlp(nn.Layer):
    """Two linear layers with the exact (erf) GELU between them, and dropout of the outputs."""

    # connects the processes that have the other hidden columns; None if all columns are here
    exchange: TensorParallelExchange | None = None
    tensor_split = TensorSplit(HIDDEN, {"fc1.weight": 1, "fc1.bias": 1}, rows="fc2")

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.hidden_dim, self.drop_rate = hidden_dim, drop_rate
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers: [B, N, D] -> [B, N, D]."""
        hidden = gelu(self.fc1(copy_to_group(self.exchange, x)))
        return dropout(self.fc2(hidden), self.drop_rate if self.training else 0.0)


def one_per_sample(x: Tensor) -> Tensor:
    """Return ones [B, 1, 1] in the dtype and on the device of x [B, N, D]; callers must not change them in place."""
    if not is_eager(x):
        return paddle.ones([x.shape[0], 1, 1], x.dtype)
    return _constant_ones(x.shape[0], x.dtype, str(x.place))


@functools.lru_cache(maxsize=16)
def _constant_ones(batch: int, dtype: Any, place: str) -> Tensor:
    """Return ones [B, 1, 1] on the current device, `place`; cached, so that later calls launch no kernel."""
    return paddle.ones([batch, 1, 1], dtype)


class DropPath(nn.Layer):
    """Stochastic depth: zeroes a residual branch for random samples and scales up the others (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero each sample of x [B, N, D] with probability `rate` and scale up the others; in evaluation, return x."""
        if self.rate == 0.0 or not self.training:
            return x
        return x * dropout(one_per_sample(x), self.rate)  # dropout draws and scales in one launch


class Block(Recomputable):
    """A pre-norm transformer block: x += gamma_1 * attention(norm1(x)); x += gamma_2 * mlp(norm2(x)).

    Args:
        dim: width D.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLP's hidden width to D.
        drop_path: stochastic depth rate.
        layer_scale: initial value of the gammas (Touvron et al. 2021); 0 for no layer scale.
        k_bias: whether keys have a bias.
        grid: rows and columns of patches for a relative position bias of this block; None for no such bias.
        drop_rate: dropout rate of the outputs of attention and MLP.
        attn_drop_rate: dropout rate of the softmax weights.
        norm_eps: eps of the layer norms.
        qk_norm: whether attention normalizes queries and keys, see `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        *,
        layer_scale: float = 0.0,
        k_bias: bool = True,
        grid: tuple[int, int] | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        norm_eps: float = LAYER_NORM_EPS,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim, norm_eps)
        dropouts = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        self.attn = Attention(dim, num_heads, k_bias=k_bias, grid=grid, qk_norm=qk_norm, norm_eps=norm_eps, **dropouts)
        self.norm2 = layer_norm(dim, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = constant_parameter(self, dim, layer_scale) if layer_scale > 0 else None
        self.gamma_2 = constant_parameter(self, dim, layer_scale) if layer_scale > 0 else None

    def forward(self, x: Tensor, ids: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute the outputs of all tokens, or of a subset.

        Args:
            x: tokens [B, N, D].
            ids: int64 [B, M], the tokens of each sample to compute; they attend to all N. A block with `grid` does not
                support them, because its bias has a row for each of the N tokens.
            bias: [H, N, N] or, with `ids`, [H, M, N], added to the logits of attention, see `Attention.forward`.

        Returns:
            [B, N, D]; with `ids` only the rows of these tokens, [B, M, D].
        """
        normed = self.norm1(x)
        if ids is None:
            x = add_residual(x, self.drop_path(scaled(self.attn(normed, bias=bias), self.gamma_1)))
        else:
            attended = self.attn(normed, gather_tokens(normed, ids), bias)
            x = add_residual(gather_tokens(x, ids), self.drop_path(scaled(attended, self.gamma_1)))
        return add_residual(x, self.drop_path(scaled(self.mlp(self.norm2(x)), self.gamma_2)))

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates for one image of `tokens` tokens, in linear layers and attention products."""
        linears = (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2)
        return tokens * sum(layer.weight.size for layer in linears) + attention_macs(self.attn, tokens, tokens)


def attention_macs(attn: nn.Layer, queries: int, keys: int) -> int:
    """Count the multiply-accumulates of the two matrix products of attention for one image."""
    return int(2 * queries * keys * attn.proj.weight.shape[0])


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Return the stochastic depth rates of `depth` blocks, rising linearly from 0 to `last`; a single block gets 0."""
    return [float(rate) for rate in np.linspace(0.0, last, depth)]


def scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    """Return a residual branch times its layer scale [D]; the branch itself if `gamma` is None."""
    return branch if gamma is None else branch * gamma


def add_residual(x: Tensor, branch: Tensor) -> Tensor:
    """Return `x` plus a branch in the dtype of `x`: a float32 residual stream stays float32 in mixed precision."""
    return x + in_dtype(branch, x.dtype)


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Gather the tokens `ids`, int64 [B, M], of every sample: x [B, N, D] -> [B, M, D]."""
    batch, tokens, dim = x.shape
    return paddle.gather(x.reshape([-1, dim]), flat_ids(ids, tokens)).reshape([batch, -1, dim])


def flat_ids(ids: Tensor, tokens: int) -> Tensor:
    """Turn the token indices of every sample, [B, M], into indices [B*M] of the flattened batch [B * `tokens`]."""
    offsets = paddle.arange(ids.shape[0], dtype=ids.dtype).unsqueeze(1) * tokens
    return (ids + offsets).reshape([-1])
