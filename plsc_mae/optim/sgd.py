"""SGD with momentum as in PyTorch, also the base class of LARS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import paddle
from paddle import Tensor

from plsc_mae.optim.param_groups import ParamGroup, paddle_groups


class SGD(paddle.optimizer.Momentum):
    """SGD with momentum: `velocity = momentum * velocity + grad; param -= lr * velocity`, with velocity 0 at the start.

    Paddle's Momentum computes the update, but it fixes the weight decay when it is constructed. This class reads a
    group's "weight_decay" at every step, so that the weight decay can be scheduled.

    Args:
        learning_rate: learning rate, or a Paddle scheduler.
        parameters: tensors, or Paddle's parameter groups: dicts with "params" and optionally "weight_decay" and
            "learning_rate", which is a factor of the learning rate.
        weight_decay: weight decay of groups without their own; weight_decay * param is added to the gradient.
        momentum: factor of the previous velocity.
        nesterov: whether to use Nesterov momentum: the step is `grad + momentum * velocity` instead of `velocity`.
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
        """Return the gradient plus the weight decay term; the velocity is updated with the result."""
        return grad + weight_decay * param if weight_decay else grad

    def _append_optimize_op(self, block: Any, param_and_grad: dict[str, Any]) -> None:
        """Update one parameter of a group; called by `step` of the base class."""
        param, grad = param_and_grad["params"]
        direction = self._direction(param, grad, param_and_grad["weight_decay"])
        super()._append_optimize_op(block, (param, direction))


def build_sgd(groups: Sequence[ParamGroup], *, momentum: float = 0.9, nesterov: bool = True) -> SGD:
    """Build SGD, by default with Nesterov momentum as in Atten4Vis/CAE's attentive probe.

    The learning rate is 0 until `set_lr`.
    """
    return SGD(0.0, paddle_groups(groups), momentum=momentum, nesterov=nesterov)
