"""AdamW, which is Paddle's own."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from plsc_mae.optim.param_groups import ParamGroup, paddle_groups


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
        parameters=paddle_groups(groups),
        weight_decay=0.0,
    )
