"""Which parameters are decayed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paddle import Tensor


class ParamGroup(NamedTuple):
    """Parameters that share their weight decay and learning rate."""

    names: list[str]
    params: list[Tensor]
    weight_decay: float
    lr_scale: float = 1.0  # times the scheduled rate


def weight_decay_groups(named_params: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[ParamGroup]:
    """Split trainable parameters into an undecayed and a decayed group (timm 0.3.2 `add_weight_decay`).

    One-dimensional parameters and biases are not decayed. Class and mask tokens have three dimensions and are: that
    is the published recipe of facebookresearch/mae.
    """
    groups = ParamGroup([], [], 0.0), ParamGroup([], [], weight_decay)
    for name, param in named_params:
        if not param.stop_gradient:
            group = groups[param.ndim > 1 and not name.endswith(".bias")]
            group.names.append(name)
            group.params.append(param)
    return [group for group in groups if group.params]
