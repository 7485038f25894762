"""The optimizers by the names that options give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from plsc_mae.optim.adamw import build_adamw
from plsc_mae.optim.lars import build_lars
from plsc_mae.optim.param_groups import ParamGroup
from plsc_mae.optim.sgd import build_sgd


class NullOptimizer:
    """Stands for an optimizer where a process has no trainable parameter, as a frozen stage of a pipeline."""

    def __init__(self) -> None:
        self._param_groups: list[dict[str, Any]] = []
        self._accumulators: dict[str, Any] = {}
        self._accumulators_holder: dict[str, Any] = {}
        self._lr = 0.0

    def set_lr(self, value: float) -> None:
        """Keep the rate."""
        self._lr = value

    def get_lr(self) -> float:
        """The rate."""
        return self._lr

    def step(self) -> None:
        """Update nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def set_state_dict(self, _state: dict[str, Any]) -> None:
        """Put nothing back."""


def build_optimizer(
    name: str, groups: Sequence[ParamGroup], *, betas: tuple[float, float], eps: float, momentum: float
) -> paddle.optimizer.Optimizer:
    """Make the optimizer `name` for groups; the rate is set before every step with `set_lr`.

    Args:
        name: "adamw"; "sgd", which has Nesterov momentum; "lars"; or "lars_priv", MAE-priv's.
        groups: parameters with their weight decay and factor of the rate; none where there is nothing to train.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of the others.
    """
    if not groups:
        return NullOptimizer()
    if name == "adamw":
        return build_adamw(groups, betas=betas, eps=eps)
    if name == "sgd":
        return build_sgd(groups, momentum=momentum)
    return build_lars(groups, momentum=momentum, rule="mae_priv" if name == "lars_priv" else "facebook")
