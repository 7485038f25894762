"""The optimizers by the names that options give them."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from plsc_mae.optim.adamw import build_adamw
from plsc_mae.optim.lars import build_lars
from plsc_mae.optim.param_groups import ParamGroup
from plsc_mae.optim.sgd import build_sgd


def build_optimizer(
    name: str, groups: Sequence[ParamGroup], *, betas: tuple[float, float], eps: float, momentum: float
) -> paddle.optimizer.Optimizer:
    """Make the optimizer `name` for groups; the rate is set before every step with `set_lr`.

    Args:
        name: "adamw"; "sgd", which has Nesterov momentum; "lars"; or "lars_priv", MAE-priv's.
        groups: parameters with their weight decay and factor of the rate.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of the others.
    """
    if name == "adamw":
        return build_adamw(groups, betas=betas, eps=eps)
    if name == "sgd":
        return build_sgd(groups, momentum=momentum)
    return build_lars(groups, momentum=momentum, rule="mae_priv" if name == "lars_priv" else "facebook")
