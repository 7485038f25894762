"""ZeRO: data-parallel processes shard state that they would otherwise replicate (Rajbhandari et al. 2020).

Stage 1 is implemented here. Each process holds the optimizer state of some parameters, updates these parameters and
sends them to the others. Gradients are averaged in the same way as without sharding, so the weights are bit-identical
to those of an unsharded run. Stages 2 and 3, which also shard gradients and weights, use Paddle's implementation, which
supports GPUs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError, remedies
from plsc_mae.optim.param_groups import ParamGroup
from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World

PADDLE_LEVELS = {2: "os_g", 3: "p_g_os"}


class UpdateSharing:
    """Assignment of parameters to the processes that update them (ZeRO stage 1).

    Args:
        groups: the optimizer's parameter groups.
        world: processes of the run; the data-parallel ones share the updates.

    Attributes:
        mine: the parameter groups, reduced to the parameters that this process updates; empty groups are left out.

    Raises:
        ConfigError: there are more data-parallel processes than parameter tensors.
    """

    def __init__(self, groups: Sequence[ParamGroup], world: World) -> None:
        self._world = world
        self._shares: list[list[Tensor]] = [[] for _ in range(world.size)]
        sizes = [0] * world.size
        # Greedy: the largest parameter goes to the process with the fewest elements. Parameters are not split.
        for param in sorted((param for group in groups for param in group.params), key=lambda p: -p.size):
            owner = sizes.index(min(sizes))
            self._shares[owner].append(param)
            sizes[owner] += param.size
        if not all(self._shares):
            raise ConfigError(
                f"--sharding_stage 1 cannot distribute {sum(map(len, self._shares))} parameter tensors over "
                f"{world.size} processes; remove it or use fewer processes"
            )
        own = {id(param) for param in self._shares[world.rank]}
        self.mine = [group for group in (_only(group, own) for group in groups) if group.params]

    def publish(self) -> None:
        """Send this process's updated parameters to the others and receive theirs in place; all processes must call."""
        self._world.publish(self._shares)


def _only(group: ParamGroup, own: set[int]) -> ParamGroup:
    kept = [(name, param) for name, param in zip(group.names, group.params, strict=True) if id(param) in own]
    return group._replace(names=[name for name, _ in kept], params=[param for _, param in kept])


def check_stage(stage: int, *, is_gpu: bool, shares_network: bool) -> None:
    """Raise ConfigError if a run does not support the ZeRO stage `stage`.

    Args:
        stage: ZeRO stage; 0 for no sharding.
        is_gpu: whether the run uses GPUs.
        shares_network: whether tensor or pipeline parallelism is enabled.
    """
    if stage in PADDLE_LEVELS and not is_gpu:
        raise ConfigError(
            f"--sharding_stage {stage} needs GPUs, because Paddle shards gradients and weights on GPUs only; use "
            "--sharding_stage 1 or --tensor_parallel on the CPU"
        )
    if stage in PADDLE_LEVELS and shares_network:
        raise ConfigError(
            f"--sharding_stage {stage} cannot be combined with {remedies('--tensor_parallel', '--pipeline_parallel')}; "
            "use --sharding_stage 1"
        )


class Sharded(NamedTuple):
    """Task and optimizer wrapped by Paddle's sharding."""

    layer: nn.Layer  # the wrapped task
    optimizer: Any  # the wrapped optimizer
    # gathers the whole weights in every process; all must call it. None if the weights are not sharded.
    collect: Callable[[], Any] | None


def share_gradients(task: nn.Layer, optimizer: paddle.optimizer.Optimizer, stage: int, members: Group) -> Sharded:
    """Wrap task and optimizer so that Paddle shards the gradients, and in stage 3 the weights too (GPU only).

    All processes must call. A checkpoint of stage 3 contains only process 0's part of the optimizer state.
    """
    layer, sharded, _ = paddle.distributed.sharding.group_sharded_parallel(
        task, optimizer, PADDLE_LEVELS[stage], group=members.handle
    )
    return Sharded(layer, sharded, layer.get_all_parameters if stage == 3 else None)
