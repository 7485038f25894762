"""AdamW that updates many parameters in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, _C_ops

CHUNK_SIZE = 32 * 2048  # elements per thread block of the GPU kernel


class _Settings(NamedTuple):
    """Settings that all parameters of one kernel call have in common."""

    lr_scale: float
    weight_decay: float
    dtype: paddle.dtype


class FusedAdamW(paddle.optimizer.AdamW):
    """Paddle's AdamW with one kernel call for all parameters of equal learning rate, weight decay and dtype.

    Paddle's own class launches a kernel for every parameter, and another one for every parameter whose learning rate is
    not the global one. The results are equal bit for bit on CPU (tests/optim/test_adamw.py), and so are the states.
    """

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        self._collected: dict[_Settings, list[tuple[Tensor, Tensor]]] = {}
        super().step()
        for settings, pairs in self._collected.items():
            self._update_together(settings, pairs)

    def _append_optimize_op(self, _block: Any, param_and_grad: dict[str, Any]) -> None:
        """Collect a parameter and its gradient for `step`; the base class would update the parameter here."""
        param, grad = self._update_param_group(param_and_grad)
        settings = _Settings(param.optimize_attr["learning_rate"], self._weight_decay, param.dtype)
        self._collected.setdefault(settings, []).append((param, grad))

    def _update_together(self, settings: _Settings, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Update the parameters of `pairs` (parameter, gradient), which all have `settings`, in one kernel call."""
        params = [param for param, _ in pairs]

        def state(name: str) -> list[Tensor]:
            return [self._get_accumulator_master(name, param) for param in params]

        low = self._multi_precision and settings.dtype in (paddle.float16, paddle.bfloat16)
        has_amsgrad = hasattr(self, "_amsgrad")  # since Paddle 3.0
        update: Callable[..., Any] = _C_ops.fused_adam_
        update(
            params,
            [grad for _, grad in pairs],
            self._create_param_lr(pairs[0]),
            state(self._moment1_acc_str),
            state(self._moment2_acc_str),
            *([None] if has_amsgrad else []),
            state(self._beta1_pow_acc_str),
            state(self._beta2_pow_acc_str),
            [self._master_weights[param.name] for param in params] if low else None,
            None,
            self._beta1,
            self._beta2,
            self._epsilon,
            CHUNK_SIZE,
            settings.weight_decay,
            True,
            low,
            False,
            *([False] if has_amsgrad else []),
        )
