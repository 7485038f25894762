"""Construction of optimizers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from plsc_mae.optim.adamw import FusedAdamW
from plsc_mae.optim.lars import build_lars
from plsc_mae.optim.param_groups import ParamGroup, paddle_groups
from plsc_mae.optim.sgd import build_sgd


class NullOptimizer:
    """Optimizer without parameters, for a process that has none to train, such as a frozen pipeline stage."""

    def __init__(self) -> None:
        self._param_groups: list[dict[str, Any]] = []
        self._accumulators: dict[str, Any] = {}
        self._accumulators_holder: dict[str, Any] = {}
        self._lr = 0.0

    def set_lr(self, value: float) -> None:
        """Store the learning rate."""
        self._lr = value

    def get_lr(self) -> float:
        """Return the learning rate."""
        return self._lr

    def step(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def set_state_dict(self, _state: dict[str, Any]) -> None:
        """Do nothing."""


def build_adamw(
    groups: Sequence[ParamGroup], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> FusedAdamW:
    """Build AdamW with decoupled weight decay per group; its learning rate is 0 until `set_lr`.

    The update is that of PyTorch's AdamW: first the decay with the current learning rate, then the bias-corrected step.
    """
    return FusedAdamW(
        learning_rate=0.0,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=eps,
        parameters=paddle_groups(groups),
        weight_decay=0.0,
    )


def build_optimizer(
    name: str, groups: Sequence[ParamGroup], *, betas: tuple[float, float], eps: float, momentum: float
) -> paddle.optimizer.Optimizer:
    """Build an optimizer by name; its learning rate is 0 until `set_lr`.

    Args:
        name: "adamw", "sgd" (with Nesterov momentum), "lars", or "lars_priv" (MAE-priv's rule).
        groups: groups of the trainable parameters; an empty sequence results in a `NullOptimizer`.
        betas: decay rates of AdamW's moments.
        eps: epsilon of AdamW.
        momentum: momentum of SGD and LARS.
    """
    if not groups:
        return NullOptimizer()
    if name == "adamw":
        return build_adamw(groups, betas=betas, eps=eps)
    if name == "sgd":
        return build_sgd(groups, momentum=momentum)
    return build_lars(groups, momentum=momentum, rule="mae_priv" if name == "lars_priv" else "facebook")
