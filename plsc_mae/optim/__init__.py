"""Optimization: schedules, parameter groups, optimizers."""

from __future__ import annotations

from plsc_mae.optim.adamw import build_adamw, load_optimizer_state, optimizer_state, set_weight_decay
from plsc_mae.optim.param_groups import ParamGroup, weight_decay_groups
from plsc_mae.optim.schedule import Rates, cosine_at, lr_at, scaled_lr

__all__ = [
    "ParamGroup",
    "Rates",
    "build_adamw",
    "cosine_at",
    "load_optimizer_state",
    "lr_at",
    "optimizer_state",
    "scaled_lr",
    "set_weight_decay",
    "weight_decay_groups",
]
