"""Tensor parallelism: processes share the heads and hidden columns of every block (Shoeybi et al. 2019, Megatron-LM).

Each process holds some of the attention heads and some of the hidden columns of each MLP, but all norms, embeddings,
output biases and classification heads. A block needs two all-reduces of its tokens in the forward pass and two in the
backward pass. The layers declare how they are divided (`models/tensor_split.py`).

Paddle's own layers for this (fleet's mpu) need kernels that its CPU build lacks, and their checkpoints differ from
those of an undivided network. This module uses collectives of paddle.distributed, the same on CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.models.tensor_split import SplitParameter, split_layers, split_parameters
from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World


class Shard(NamedTuple):
    """Description of the division of a parameter among processes, stored as `param.shard` of every share."""

    axis: int  # axis along which the parameter is divided
    parts: int  # number of tensors concatenated along the axis and divided separately, such as 3 for q, k and v
    group: Group  # the processes that hold the shares

    def whole_shape(self, shape: Sequence[int]) -> list[int]:
        """Return the shape of the whole parameter whose shares have the shape `shape`."""
        return [side * self.group.size if axis == self.axis else side for axis, side in enumerate(shape)]

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """Return this process's share of the array `whole`."""
        pieces = np.split(whole, self.parts, axis=self.axis)
        chosen = [np.split(piece, self.group.size, axis=self.axis)[self.group.rank] for piece in pieces]
        return np.ascontiguousarray(np.concatenate(chosen, axis=self.axis))

    def join(self, members: list[np.ndarray]) -> np.ndarray:
        """Return the whole array, assembled from the shares of all group members in order of rank."""
        pieces = [np.split(part, self.parts, axis=self.axis) for part in members]
        return np.concatenate([piece[i] for i in range(self.parts) for piece in pieces], axis=self.axis)

    def without_group(self) -> Shard:
        """Return a copy with a single process in place of the group, for use in another process."""
        return self._replace(group=Group.alone())


def shard_of(param: Tensor) -> Shard | None:
    """Return the description of a parameter's division; None if the parameter is whole."""
    return getattr(param, "shard", None)


def shards_of(model: nn.Layer) -> dict[str, Shard]:
    """Return the descriptions of the division of a network's divided parameters, by name."""
    shards = {name: shard_of(param) for name, param in model.named_parameters()}
    return {name: shard for name, shard in shards.items() if shard is not None}


def count_parameters(params: Iterable[Tensor], world: World) -> int:
    """Count the parameters of the whole network, each once, even if processes divide it; all processes must call."""
    ours = sum(param.size if (shard := shard_of(param)) is None else param.size * shard.group.size for param in params)
    return int(world.pipeline.sum(paddle.to_tensor(ours, dtype="int64")))


def my_part(whole: np.ndarray, shard: Shard | None, shape: Sequence[int]) -> np.ndarray | None:
    """Return this process's share of the array `whole`, or None if that share would not have shape `shape`.

    If `shard` is None, the parameter is not divided, and the share is the whole array.
    """
    wanted = list(shape) if shard is None else shard.whole_shape(shape)
    if list(whole.shape) != wanted:
        return None
    return whole if shard is None else shard.cut(whole)


class _Spread(paddle.autograd.PyLayer):
    """Identity in the forward pass, sum of the gradients over the group (all-reduce) in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.group.sum(grad.clone())


class _Gather(paddle.autograd.PyLayer):
    """Sum over the group (all-reduce) in the forward pass, identity in the backward pass."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.sum(x.clone())

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


class GroupExchange:
    """Implementation of `models.layers.TensorParallelExchange` for the processes of a group."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def copy_to_group(self, x: Tensor) -> Tensor:
        """Return `x`; the backward pass sums its gradient over the group."""
        return x if x.stop_gradient else _Spread.apply(x, self.group)

    def reduce_from_group(self, x: Tensor) -> Tensor:
        """Return `x` summed over the group; the backward pass leaves the gradient unchanged."""
        return _Gather.apply(x, self.group)


def share_blocks(model: nn.Layer, group: Group) -> None:
    """Reduce the layers of a network that declare a `tensor_split`, in place, to this process's share.

    Call this before anything refers to the parameters, which are replaced. All processes must start from the same whole
    network.
    """
    if group.size == 1:
        return
    check_divisible(model, group.size)
    exchange = GroupExchange(group)
    for layer, split in split_layers(model):
        for entry in split_parameters(layer, split):
            _keep_share(entry, group)
        setattr(layer, split.unit.attribute, getattr(layer, split.unit.attribute) // group.size)
        if split.rows:
            layer.exchange = getattr(layer, split.rows).exchange = exchange


def check_divisible(model: nn.Layer, ways: int) -> None:
    """Check that `ways` processes can share the blocks of a network, whose parameters may still be uninitialized.

    Raises:
        ConfigError: a layer's number of attention heads or hidden columns is not divisible by `ways`; attention has
            dropout, and all processes would draw the same random numbers for different heads; or attention normalizes
            queries and keys, and the gradients of these norms' weights would have to be summed over the processes.
    """
    if ways == 1:
        return
    for layer, split in split_layers(model):
        if getattr(layer, "attn_drop_rate", 0):
            raise ConfigError(
                "--attn_drop_rate and --tensor_parallel cannot be combined: all processes would drop the same weights "
                "of different heads; leave one of them out"
            )
        if getattr(layer, "q_norm", None) is not None:
            raise ConfigError(
                f"--tensor_parallel {ways} cannot divide attention that normalizes queries and keys (q_norm); leave "
                "--tensor_parallel out"
            )
        units = getattr(layer, split.unit.attribute)
        if units % ways:
            raise ConfigError(
                f"--tensor_parallel {ways} does not divide the {units} {split.unit.words} of a block; choose a divisor"
            )


def share_sizes(model: nn.Layer, ways: int) -> dict[int, int]:
    """Return the number of elements of each parameter that one of `ways` processes holds, by `id(parameter)`."""
    sizes = {id(param): int(param.size) for param in model.parameters()}
    for layer, split in split_layers(model):
        for entry in split_parameters(layer, split):
            sizes[id(entry.parameter)] //= ways
    return sizes


def _keep_share(entry: SplitParameter, group: Group) -> None:
    """Replace a parameter by this process's share."""
    whole, shard = entry.parameter, Shard(entry.axis, entry.parts, group)
    values = shard.cut(whole.numpy())
    share = entry.owner.create_parameter(
        list(values.shape), dtype=whole.dtype, default_initializer=nn.initializer.Assign(values)
    )
    share.stop_gradient = whole.stop_gradient
    share.shard = shard
    delattr(entry.owner, entry.name)
    setattr(entry.owner, entry.name, share)
