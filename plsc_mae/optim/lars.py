"""LARS (You et al. 2017), the optimizer of linear probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import paddle
from paddle import Tensor

from plsc_mae.optim.param_groups import ParamGroup, paddle_groups
from plsc_mae.optim.sgd import SGD
from plsc_mae.parallel.tensor import shard_of

Rule = Literal["facebook", "mae_priv"]
MAE_PRIV_EPS = 1e-8


class LARS(SGD):
    """SGD with momentum whose gradients are scaled to the norm of their parameters.

    A gradient becomes `trust_coefficient * |param| / |grad| * grad`, and stays as it is where either norm is 0. The
    rate stays outside of the velocity.

    Args:
        learning_rate: the rate, or a Paddle scheduler.
        parameters: tensors, or groups of them as `SGD` takes them.
        weight_decay: of groups without their own.
        momentum: share of the velocity that is kept.
        trust_coefficient: norm of a scaled gradient over that of its parameter.
        rule: "facebook" (facebookresearch/mae, Atten4Vis/CAE) adds the decay to the gradient and then scales it, and
            does neither to one-dimensional parameters. "mae_priv" (BUPT-PRIV/MAE-priv) scales where the weight decay
            is not 0 and lets the decay only lower the scale: its gradients are never decayed.
    """

    def __init__(
        self,
        learning_rate: float | paddle.optimizer.lr.LRScheduler,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        *,
        rule: Rule = "facebook",
    ) -> None:
        super().__init__(learning_rate, parameters, weight_decay, momentum)
        self._trust, self._rule = trust_coefficient, rule

    def _direction(self, param: Tensor, grad: Tensor, weight_decay: float) -> Tensor:
        if self._rule == "mae_priv":
            if weight_decay == 0:
                return grad
            size, slope = self._norms(param, grad)
            ratio = self._trust * size / (slope + weight_decay * size + MAE_PRIV_EPS)
        else:
            if param.ndim <= 1:
                return grad
            grad = super()._direction(param, grad, weight_decay)
            size, slope = self._norms(param, grad)
            ratio = self._trust * size / slope
        return grad * paddle.where((size > 0) & (slope > 0), ratio, paddle.ones_like(ratio))

    @staticmethod
    def _norms(param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Norms of a parameter and of its gradient, over all processes that have a part of it."""
        shard = shard_of(param)
        if shard is None:
            return l2_norm(param), l2_norm(grad)
        squares = shard.group.sum(paddle.stack([(param * param).sum(), (grad * grad).sum()]))
        size, slope = paddle.unbind(paddle.sqrt(squares))
        return size, slope


def l2_norm(x: Tensor) -> Tensor:
    """L2 norm of all elements, on the device.

    On CPU `paddle.linalg.norm` (3.3) and `paddle.dot` add up one by one in float32: 6e-4 off at 2 million elements,
    and `norm` four times as slow.
    """
    return paddle.sqrt((x * x).sum())


def build_lars(
    groups: Sequence[ParamGroup],
    *,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    rule: Rule = "facebook",
) -> LARS:
    """Make LARS for groups; the rate is set before every step with `set_lr`."""
    return LARS(0.0, paddle_groups(groups), momentum=momentum, trust_coefficient=trust_coefficient, rule=rule)
