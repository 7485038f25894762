"""LARS: layer-wise adaptive rate scaling (You et al. 2017)."""

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
TRUST_COEFFICIENT = 0.001


class LARS(SGD):
    """SGD with momentum, on gradients that are scaled to the norms of their parameters.

    The scale is `trust_coefficient * |param| / |grad|`, or 1 if a norm is 0; `rule` defines exceptions.
    The learning rate is not part of the velocity.

    Args:
        learning_rate: learning rate, or a Paddle scheduler.
        parameters: tensors or groups, as in `SGD`.
        weight_decay: weight decay of groups without their own.
        momentum: factor of the previous velocity.
        trust_coefficient: factor of the scale.
        rule: "facebook" (facebookresearch/mae, Atten4Vis/CAE) adds the decay to the gradient and then scales the sum;
            one-dimensional parameters are neither decayed nor scaled. "mae_priv" (BUPT-PRIV/MAE-priv) scales only
            groups with non-zero weight decay. Its decay enters only the denominator of the scale; it is never added to
            the gradient.
    """

    def __init__(
        self,
        learning_rate: float | paddle.optimizer.lr.LRScheduler,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = TRUST_COEFFICIENT,
        *,
        rule: Rule = "facebook",
    ) -> None:
        super().__init__(learning_rate, parameters, weight_decay, momentum)
        self._trust_coefficient = trust_coefficient
        self._rule = rule

    def _direction(self, param: Tensor, grad: Tensor, weight_decay: float) -> Tensor:
        if self._rule == "mae_priv":
            if weight_decay == 0:
                return grad
            param_norm, grad_norm = self._norms(param, grad)
            ratio = self._trust_coefficient * param_norm / (grad_norm + weight_decay * param_norm + MAE_PRIV_EPS)
        else:
            if param.ndim <= 1:
                return grad
            grad = super()._direction(param, grad, weight_decay)
            param_norm, grad_norm = self._norms(param, grad)
            ratio = self._trust_coefficient * param_norm / grad_norm
        return grad * paddle.where((param_norm > 0) & (grad_norm > 0), ratio, paddle.ones_like(ratio))

    @staticmethod
    def _norms(param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norms of a whole parameter and its whole gradient; all processes that hold a shard must call."""
        shard = shard_of(param)
        if shard is None:
            return l2_norm(param), l2_norm(grad)
        squares = shard.group.sum(paddle.stack([(param * param).sum(), (grad * grad).sum()]))
        param_norm, grad_norm = paddle.unbind(paddle.sqrt(squares))
        return param_norm, grad_norm


def l2_norm(x: Tensor) -> Tensor:
    """Return the L2 norm of all elements as a tensor on the device.

    `paddle.linalg.norm` and `paddle.dot` are not used, because on CPU they accumulate sequentially in float32 (Paddle
    3.3): with 2 million normally distributed elements the relative error is 6e-4.
    """
    return paddle.sqrt((x * x).sum())


def build_lars(groups: Sequence[ParamGroup], *, momentum: float = 0.9, rule: Rule = "facebook") -> LARS:
    """Build LARS for `groups`; its learning rate is 0 until `set_lr`."""
    return LARS(0.0, paddle_groups(groups), momentum=momentum, rule=rule)
