"""Conversion of optimizer states between Paddle's names and our parameter names, for checkpoints."""

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
    """Return the optimizer's float32 copies of 16-bit weights, by Paddle's names of the weights; {} if it has none."""
    return getattr(optimizer, "_master_weights", {})


def optimizer_tensors(
    optimizer: paddle.optimizer.Optimizer, named_params: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Return the accumulators by our parameter names: {"encoder.norm.weight": {"moment1_0": tensor, ...}}.

    Parameters without accumulators are left out. Paddle's own names contain a counter of the layers that a process has
    created, so they differ between processes.
    """
    # In Paddle 2, `state_dict` does not contain loaded values until the first update.
    loaded = {} if optimizer._accumulators else optimizer._accumulators_holder
    entries = {**loaded, **optimizer.state_dict()}
    stored = {key: value for key, value in entries.items() if isinstance(value, paddle.Tensor)}
    state = {}
    for name, param in named_params.items():
        prefix = master_weights(optimizer).get(param.name, param).name + "_"
        state[name] = {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}
    return {name: accumulators for name, accumulators in state.items() if accumulators}


def optimizer_state(optimizer: paddle.optimizer.Optimizer, named_params: Mapping[str, Tensor]) -> State:
    """Return the accumulators by our parameter names, as NumPy arrays."""
    tensors = optimizer_tensors(optimizer, named_params)
    return {name: {key: value.numpy() for key, value in entry.items()} for name, entry in tensors.items()}


def stored_optimizer_state(tensors: Mapping[str, np.ndarray], section: str) -> State:
    """Return the optimizer state that a checkpoint's tensors contain, in the form of `optimizer_state`.

    Args:
        tensors: the checkpoint's tensors by path.
        section: first component of the optimizer state's paths, without the "/".
    """
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
    """Restore the state of an optimizer; this process takes only its part of a sharded parameter's accumulators.

    Args:
        optimizer: optimizer of the parameters.
        state: whole accumulators by our parameter names, as returned by `optimizer_state`.
        named_params: parameters by our names.
        copies: float32 values of 16-bit parameters by our names; of a sharded parameter only this process's part.
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
            part = my_part(value, shard, param.shape)  # None for scalars such as beta1_pow, which are not sharded
            flat[f"{prefix}_{key}"] = paddle.to_tensor(value if part is None else part)
    optimizer.set_state_dict({**flat, "master_weights": masters} if masters else flat)
