"""SGD with momentum as PyTorch computes it; LARS builds on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import paddle
from paddle import Tensor

from plsc_mae.optim.param_groups import ParamGroup, paddle_groups


class SGD(paddle.optimizer.Momentum):
    """`velocity = momentum * velocity + grad; param -= lr * velocity`, the velocity from zero.

    The update is Paddle's, whose weight decay is fixed when it is made: a scheduled one would have no effect. Here a
    group's "weight_decay" is read at every step.

    Args:
        learning_rate: the rate, or a Paddle scheduler.
        parameters: tensors, or groups of them as Paddle has them: dicts with "params" and, where a group differs,
            "weight_decay" and "learning_rate", which multiplies the rate.
        weight_decay: times the parameter is added to its gradient.
        momentum: share of the velocity that is kept.
        nesterov: whether to step by `grad + momentum * velocity` instead.
    """

    def __init__(
        self,
        learning_rate: float | paddle.optimizer.lr.LRScheduler,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        *,
        nesterov: bool = False,
    ) -> None:
        given: list[Any] = list(parameters)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        undecayed = [{**group, "weight_decay": None} for group in groups]
        super().__init__(learning_rate, momentum, undecayed, use_nesterov=nesterov)
        for own, group in zip(self._param_groups, groups, strict=True):
            own["weight_decay"] = group.get("weight_decay", weight_decay)

    def _direction(self, param: Tensor, grad: Tensor, weight_decay: float) -> Tensor:
        """What goes into the velocity."""
        return grad + weight_decay * param if weight_decay else grad

    def _append_optimize_op(self, block: Any, param_and_grad: dict[str, Any]) -> None:
        """Update one parameter of a group; the base class calls it in `step`."""
        param, grad = param_and_grad["params"]
        direction = self._direction(param, grad, param_and_grad["weight_decay"])
        super()._append_optimize_op(block, (param, direction))


def build_sgd(groups: Sequence[ParamGroup], *, momentum: float = 0.9, nesterov: bool = True) -> SGD:
    """Make SGD with Nesterov momentum (attentive probe of Atten4Vis/CAE); the rate is set with `set_lr`."""
    return SGD(0.0, paddle_groups(groups), momentum=momentum, nesterov=nesterov)
