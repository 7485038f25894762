"""ZeRO: processes that share the data also share out what they would all keep alike (Rajbhandari et al. 2020).

Stage 1 is here: every process keeps the optimizer's state of some parameters, updates those and tells the others.
Gradients are averaged as without it, so the weights are the same bit for bit. Stages 2 and 3, which also share out
gradients and weights, are Paddle's, which has them for GPUs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.optim.param_groups import ParamGroup
from plsc_mae.parallel.group import Group

PADDLE_LEVELS = {2: "os_g", 3: "p_g_os"}


class UpdateSharing:
    """Which member of a group updates which parameters.

    Args:
        groups: the optimizer's parameter groups.
        members: the processes that share the data.

    Attributes:
        mine: the groups with this process's parameters alone.

    Raises:
        ConfigError: there are more processes than parameters.
    """

    def __init__(self, groups: Sequence[ParamGroup], members: Group) -> None:
        self._members = members
        self._shares: list[list[Tensor]] = [[] for _ in range(members.size)]
        sizes = [0] * members.size
        # The largest first, each to whom has least: parameters stay whole, and the shares come out nearly equal.
        for param in sorted((param for group in groups for param in group.params), key=lambda p: -p.size):
            owner = sizes.index(min(sizes))
            self._shares[owner].append(param)
            sizes[owner] += param.size
        if not all(self._shares):
            raise ConfigError(
                f"--sharding_stage 1 cannot share {sum(map(len, self._shares))} parameters among {members.size} "
                "processes; leave it out"
            )
        own = {id(param) for param in self._shares[members.rank]}
        self.mine = [group for group in (_only(group, own) for group in groups) if group.params]

    @paddle.no_grad()
    def publish(self) -> None:
        """Give all members the parameters that each has updated; all must call."""
        for owner, share in enumerate(self._shares):
            for dtype in {param.dtype: None for param in share}:
                params = [param for param in share if param.dtype == dtype]
                flat = self._members.broadcast(paddle.concat([param.flatten() for param in params]), owner)
                if owner != self._members.rank:
                    for param, values in zip(params, paddle.split(flat, [param.size for param in params]), strict=True):
                        param.set_value(values.reshape(param.shape))


def _only(group: ParamGroup, own: set[int]) -> ParamGroup:
    kept = [(name, param) for name, param in zip(group.names, group.params, strict=True) if id(param) in own]
    return group._replace(names=[name for name, _ in kept], params=[param for _, param in kept])


def check_stage(stage: int, *, is_gpu: bool, shares_network: bool) -> None:
    """Raise ConfigError unless Paddle can do a stage here."""
    if stage in PADDLE_LEVELS and not is_gpu:
        raise ConfigError(
            f"--sharding_stage {stage} needs GPUs: Paddle shares out gradients and weights there only; use "
            "--sharding_stage 1 or --tensor_parallel on the CPU"
        )
    if stage in PADDLE_LEVELS and shares_network:
        raise ConfigError(
            f"--sharding_stage {stage} and --tensor_parallel or --pipeline_parallel exclude each other; use "
            "--sharding_stage 1 with them"
        )


class Sharded(NamedTuple):
    """What is trained instead of a task and its optimizer.

    Attributes:
        layer: the task.
        optimizer: its optimizer.
        collect: makes the weights whole in every process; None where they are.
    """

    layer: nn.Layer
    optimizer: Any
    collect: Callable[[], Any] | None


def share_gradients(task: nn.Layer, optimizer: paddle.optimizer.Optimizer, stage: int, members: Group) -> Sharded:
    """Let Paddle share out gradients, and in stage 3 weights too, among the processes that share the data (GPU only).

    What a checkpoint of stage 3 holds of the optimizer is process 0's part.
    """
    layer, sharded, _ = paddle.distributed.sharding.group_sharded_parallel(
        task, optimizer, PADDLE_LEVELS[stage], group=members.handle
    )
    return Sharded(layer, sharded, layer.get_all_parameters if stage == 3 else None)
