"""An optimizer's state under our parameters' names, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.parallel.tensor import my_part, shard_of

State = dict[str, dict[str, np.ndarray]]


def master_weights(optimizer: paddle.optimizer.Optimizer) -> Mapping[str, Tensor]:
    """Float32 copies of weights in 16 bits, by Paddle's names of those."""
    return getattr(optimizer, "_master_weights", {})


def optimizer_tensors(
    optimizer: paddle.optimizer.Optimizer, named_params: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """The accumulators by our parameter names: {"encoder.norm.weight": {"moment1_0": tensor, ...}}.

    Paddle keys them by names that count up with every layer a process makes, useless in another process.
    """
    # Paddle 2 does not tell of what was loaded until the first update.
    loaded = {} if optimizer._accumulators else optimizer._accumulators_holder
    entries = {**loaded, **optimizer.state_dict()}
    stored = {key: value for key, value in entries.items() if isinstance(value, paddle.Tensor)}
    state = {}
    for name, param in named_params.items():
        prefix = master_weights(optimizer).get(param.name, param).name + "_"
        state[name] = {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}
    return {name: accumulators for name, accumulators in state.items() if accumulators}


def optimizer_state(optimizer: paddle.optimizer.Optimizer, named_params: Mapping[str, Tensor]) -> State:
    """The same as arrays."""
    tensors = optimizer_tensors(optimizer, named_params)
    return {name: {key: value.numpy() for key, value in entry.items()} for name, entry in tensors.items()}


def stored_optimizer_state(tensors: Mapping[str, np.ndarray], section: str) -> State:
    """What `optimizer_state` gave, out of a checkpoint that has it below `section`."""
    state: State = {}
    for key, value in tensors.items():
        if key.startswith(section + "/"):
            name, _, accumulator = key[len(section) + 1 :].rpartition("/")
            state.setdefault(name, {})[accumulator] = value
    return state


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer,
    state: Mapping[str, Mapping[str, Any]],
    named_params: Mapping[str, Tensor],
    copies: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Put back what `optimizer_state` gave of these parameters, or of the wholes of which they are parts.

    Args:
        optimizer: of the parameters.
        state: accumulators by our names of the parameters.
        named_params: the parameters.
        copies: float32 values of those that have 16 bits.
    """
    flat: dict[str, Any] = {}
    masters = dict(master_weights(optimizer))
    for name, param in named_params.items():
        shard = shard_of(param)
        if name in copies and name in state:
            masters[param.name] = masters.get(param.name, paddle.zeros(param.shape, "float32"))
            masters[param.name].set_value(copies[name])
        prefix = masters.get(param.name, param).name
        for key, value in state.get(name, {}).items():
            part = my_part(value, shard, param.shape)  # numbers beside the moments are whole everywhere
            flat[f"{prefix}_{key}"] = paddle.to_tensor(value if part is None else part)
    optimizer.set_state_dict({**flat, "master_weights": masters} if masters else flat)
