"""Tensor parallelism: processes share the heads and hidden columns of every block (Shoeybi et al. 2019, Megatron-LM).

Each process has whole heads and the hidden columns of the MLPs that follow from its number; norms, embeddings, biases
behind a sum, and heads of classification are everywhere. So a block costs two sums of its tokens over the processes
forward and two backward.

Paddle's own layers for this (fleet's mpu) need kernels that its CPU build does not have, and their checkpoints differ
from a whole network's; the exchanges here are plain collectives of paddle.distributed, the same on CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.cae import CrossAttention
from plsc_mae.models.layers import Attention, Linear, Mlp
from plsc_mae.models.rel_pos_bias import RelativePositionBias
from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World

COLUMNS, ROWS = 1, 0


class Shard(NamedTuple):
    """Which part of a parameter is here; parameters that have one carry it as `param.shard`.

    Attributes:
        axis: along which it is cut.
        parts: tensors that lie one behind the other along the axis and are cut each for itself, as q, k and v are.
        group: the processes that have the parts.
    """

    axis: int
    parts: int
    group: Group

    def whole_shape(self, shape: Sequence[int]) -> list[int]:
        """Shape of the whole of a part."""
        return [side * self.group.size if axis == self.axis else side for axis, side in enumerate(shape)]

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """The part of a whole array that this process has."""
        pieces = np.split(whole, self.parts, axis=self.axis)
        chosen = [np.split(piece, self.group.size, axis=self.axis)[self.group.rank] for piece in pieces]
        return np.ascontiguousarray(np.concatenate(chosen, axis=self.axis))

    def join(self, members: list[np.ndarray]) -> np.ndarray:
        """The whole array of what the members have, in their order."""
        pieces = [np.split(part, self.parts, axis=self.axis) for part in members]
        return np.concatenate([piece[i] for i in range(self.parts) for piece in pieces], axis=self.axis)

    def without_group(self) -> Shard:
        """The same for another process, which has groups of its own."""
        return self._replace(group=Group.alone())


def shard_of(param: Tensor) -> Shard | None:
    """Which part of a parameter is here; None where it is whole."""
    return getattr(param, "shard", None)


def shards_of(model: nn.Layer) -> dict[str, Shard]:
    """Which parts of a network's parameters are here, for those that are not whole."""
    shards = {name: shard_of(param) for name, param in model.named_parameters()}
    return {name: shard for name, shard in shards.items() if shard is not None}


def count_parameters(params: Iterable[Tensor], world: World) -> int:
    """Elements of parameters, of which this process has some or parts, in all processes together."""
    ours = sum(param.size if (shard := shard_of(param)) is None else param.size * shard.group.size for param in params)
    return int(world.pipeline.sum(paddle.to_tensor(ours, dtype="int64")))


def my_part(whole: np.ndarray, shard: Shard | None, shape: Sequence[int]) -> np.ndarray | None:
    """This process's part, of `shape`, of a stored whole array; None where the array is of another shape."""
    wanted = list(shape) if shard is None else shard.whole_shape(shape)
    if list(whole.shape) != wanted:
        return None
    return whole if shard is None else shard.cut(whole)


class _Spread(paddle.autograd.PyLayer):
    """The same values forward, the sum of the gradients backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Pass the values on."""
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Sum over the group."""
        return ctx.group.sum(grad.clone())


class _Gather(paddle.autograd.PyLayer):
    """The sum forward, the same gradients backward."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Sum over the group."""
        return group.sum(x.clone())

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        """Pass the gradients on."""
        return grad.clone()


class GroupExchange:
    """`models.layers.Exchange` among the processes of a group."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def spread(self, x: Tensor) -> Tensor:
        """The same values; gradients are summed over the group."""
        return x if x.stop_gradient else _Spread.apply(x, self.group)

    def gather(self, x: Tensor) -> Tensor:
        """The sum over the group; gradients pass."""
        return _Gather.apply(x, self.group)


def share_blocks(model: nn.Layer, group: Group) -> None:
    """Keep this process's heads and hidden columns of every attention and MLP of a network; drop the rest.

    Call it before anything refers to the parameters. All processes must have the same whole network.

    Raises:
        ConfigError: a number of heads or hidden columns does not divide by the processes; dropout of attention, whose
            draws would repeat from process to process.
    """
    if group.size == 1:
        return
    exchange = GroupExchange(group)
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, Attention):
            _share_self_attention(layer, exchange)
        elif isinstance(layer, CrossAttention):
            _share_cross_attention(layer, exchange)
        elif isinstance(layer, Mlp):
            _check_divides(layer.fc1.weight.shape[1], "hidden columns", group)
            layer.exchange = exchange
            _share(layer.fc1, "weight", COLUMNS, group)
            _share(layer.fc1, "bias", 0, group)
            _share_output(layer.fc2, exchange)
        elif isinstance(layer, RelativePositionBias):
            _share(layer, "relative_position_bias_table", COLUMNS, group)


def _share_self_attention(attn: Attention, exchange: GroupExchange) -> None:
    group = exchange.group
    if attn.attn_drop_rate:
        raise ConfigError("--attn_drop_rate and --tensor_parallel exclude each other: its draws are not shared out")
    _share_heads(attn, exchange)
    _share(attn.qkv, "weight", COLUMNS, group, parts=3)
    if attn.q_bias is None:
        _share(attn.qkv, "bias", 0, group, parts=3)
    else:
        _share(attn, "q_bias", 0, group)
        _share(attn, "v_bias", 0, group)
    _share_output(attn.proj, exchange)


def _share_cross_attention(attn: CrossAttention, exchange: GroupExchange) -> None:
    _share_heads(attn, exchange)
    for linear in (attn.q, attn.k, attn.v):
        _share(linear, "weight", COLUMNS, exchange.group)
    _share(attn, "q_bias", 0, exchange.group)
    _share(attn, "v_bias", 0, exchange.group)
    _share_output(attn.proj, exchange)


def _share_heads(attn: Attention | CrossAttention, exchange: GroupExchange) -> None:
    _check_divides(attn.num_heads, "attention heads", exchange.group)
    attn.exchange = exchange
    attn.num_heads //= exchange.group.size


def _share_output(linear: Linear, exchange: GroupExchange) -> None:
    """A layer that takes what is shared and gives what all have: its rows are cut, its bias is added behind the sum."""
    linear.exchange = exchange
    _share(linear, "weight", ROWS, exchange.group)


def _share(layer: nn.Layer, name: str, axis: int, group: Group, parts: int = 1) -> None:
    """Replace a parameter by this process's part of it."""
    whole, shard = getattr(layer, name), Shard(axis, parts, group)
    values = shard.cut(whole.numpy())
    part = layer.create_parameter(
        list(values.shape), dtype=whole.dtype, default_initializer=nn.initializer.Assign(values)
    )
    part.stop_gradient = whole.stop_gradient
    part.shard = shard
    delattr(layer, name)
    setattr(layer, name, part)


def _check_divides(count: int, what: str, group: Group) -> None:
    if count % group.size:
        raise ConfigError(
            f"--tensor_parallel {group.size} does not divide the {count} {what} of a block; choose a divisor"
        )
