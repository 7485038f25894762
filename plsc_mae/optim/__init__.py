"""Optimization: schedules, parameter groups, optimizers and weight averaging."""

from __future__ import annotations

from plsc_mae.optim.build import build_adamw, build_optimizer
from plsc_mae.optim.ema import WeightAverage
from plsc_mae.optim.lars import LARS, build_lars
from plsc_mae.optim.param_groups import (
    VIT_NO_DECAY,
    ParamGroup,
    layer_decay_groups,
    set_weight_decay,
    vit_layer,
    weight_decay_groups,
)
from plsc_mae.optim.schedule import Rates, Schedule, by_epochs, by_updates, cosine_at, lr_at, scaled_lr
from plsc_mae.optim.sgd import SGD, build_sgd
from plsc_mae.optim.state import (
    load_optimizer_state,
    master_weights,
    optimizer_state,
    optimizer_tensors,
    stored_optimizer_state,
)

__all__ = [
    "LARS",
    "SGD",
    "VIT_NO_DECAY",
    "ParamGroup",
    "Rates",
    "Schedule",
    "WeightAverage",
    "build_adamw",
    "build_lars",
    "build_optimizer",
    "build_sgd",
    "by_epochs",
    "by_updates",
    "cosine_at",
    "layer_decay_groups",
    "load_optimizer_state",
    "lr_at",
    "master_weights",
    "optimizer_state",
    "optimizer_tensors",
    "scaled_lr",
    "set_weight_decay",
    "stored_optimizer_state",
    "vit_layer",
    "weight_decay_groups",
]
