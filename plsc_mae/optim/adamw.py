"""AdamW on Paddle's own optimizer, with its state named after our parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.optim.param_groups import ParamGroup

State = dict[str, dict[str, np.ndarray]]


def build_adamw(
    groups: Sequence[ParamGroup], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> paddle.optimizer.AdamW:
    """Make AdamW with decoupled weight decay per group; the rate is set before every step with `set_lr`.

    Equal to PyTorch's AdamW: decay first, with the current rate, then the bias-corrected update.
    """
    return paddle.optimizer.AdamW(
        learning_rate=0.0,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=eps,
        # Paddle multiplies the rate that is set by a group's own "learning_rate".
        parameters=[
            {"params": group.params, "weight_decay": group.weight_decay, "learning_rate": group.lr_scale}
            for group in groups
        ],
        weight_decay=0.0,
    )


def set_weight_decay(optimizer: paddle.optimizer.Optimizer, groups: Sequence[ParamGroup], weight_decay: float) -> None:
    """Change the weight decay of those of the optimizer's groups that have one."""
    for group, paddle_group in zip(groups, optimizer._param_groups, strict=True):
        if group.weight_decay > 0:
            paddle_group["weight_decay"] = weight_decay


def optimizer_state(optimizer: paddle.optimizer.Optimizer, named_params: Mapping[str, Tensor]) -> State:
    """The accumulators by our parameter names: {"encoder.norm.weight": {"moment1_0": array, ...}}.

    Paddle keys them by names that count up with every layer a process makes, useless in another process.
    """
    stored = {key: value for key, value in optimizer.state_dict().items() if isinstance(value, paddle.Tensor)}
    state: State = {}
    for name, param in named_params.items():
        prefix = param.name + "_"
        state[name] = {key[len(prefix) :]: value.numpy() for key, value in stored.items() if key.startswith(prefix)}
    return {name: accumulators for name, accumulators in state.items() if accumulators}


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, state: Mapping[str, Mapping[str, Any]], named_params: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_state` gave."""
    flat = {
        f"{named_params[name].name}_{key}": paddle.to_tensor(value)
        for name, accumulators in state.items()
        for key, value in accumulators.items()
    }
    optimizer.set_state_dict(flat)
