"""Optimization: schedules, parameter groups, optimizers."""

from __future__ import annotations

from plsc_mae.optim.adamw import build_adamw, load_optimizer_state, optimizer_state
from plsc_mae.optim.param_groups import ParamGroup, weight_decay_groups
from plsc_mae.optim.schedule import lr_at, scaled_lr

__all__ = [
    "ParamGroup",
    "build_adamw",
    "load_optimizer_state",
    "lr_at",
    "optimizer_state",
    "scaled_lr",
    "weight_decay_groups",
]
