"""An optimizer's state under our parameters' names, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

State = dict[str, dict[str, np.ndarray]]


def optimizer_state(optimizer: paddle.optimizer.Optimizer, named_params: Mapping[str, Tensor]) -> State:
    """The accumulators by our parameter names: {"encoder.norm.weight": {"moment1_0": array, ...}}.

    Paddle keys them by names that count up with every layer a process makes, useless in another process.
    """
    # Paddle 2 does not tell of what was loaded until the first update.
    loaded = {} if optimizer._accumulators else optimizer._accumulators_holder
    entries = {**loaded, **optimizer.state_dict()}
    stored = {key: value for key, value in entries.items() if isinstance(value, paddle.Tensor)}
    state: State = {}
    for name, param in named_params.items():
        prefix = param.name + "_"
        state[name] = {key[len(prefix) :]: value.numpy() for key, value in stored.items() if key.startswith(prefix)}
    return {name: accumulators for name, accumulators in state.items() if accumulators}


def stored_optimizer_state(tensors: Mapping[str, np.ndarray], section: str) -> State:
    """What `optimizer_state` gave, out of a checkpoint that has it below `section`."""
    state: State = {}
    for key, value in tensors.items():
        if key.startswith(section + "/"):
            name, _, accumulator = key[len(section) + 1 :].rpartition("/")
            state.setdefault(name, {})[accumulator] = value
    return state


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, state: Mapping[str, Mapping[str, Any]], named_params: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_state` gave."""
    flat = {
        f"{named_params[name].name}_{key}": paddle.to_tensor(value)
        for name, accumulators in state.items()
        for key, value in accumulators.items()
    }
    optimizer.set_state_dict(flat)
