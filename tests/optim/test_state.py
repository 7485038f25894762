"""Optimizer state is saved to and restored from a checkpoint's arrays bit for bit."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.optim import (
    ParamGroup,
    build_adamw,
    build_lars,
    build_sgd,
    load_optimizer_state,
    optimizer_state,
)

pytestmark = pytest.mark.compat

BUILDERS = {"adamw": build_adamw, "lars": build_lars, "sgd": build_sgd}


def start(build):
    """Create a network and its optimizer; Paddle names the parameters differently each time."""
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    named = dict(model.named_parameters())
    groups = [
        ParamGroup([], [p for p in named.values() if p.ndim > 1], 0.05),
        ParamGroup([], [p for p in named.values() if p.ndim == 1], 0.0, lr_scale=0.5),
    ]
    optimizer = build(groups)
    optimizer.set_lr(0.1)
    return model, named, optimizer


def train(model, optimizer, batches):
    for batch in batches:
        model(paddle.to_tensor(batch)).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)


@pytest.mark.parametrize("name", BUILDERS)
def test_training_continues_exactly(name):
    batches = np.random.default_rng(0).standard_normal((6, 3, 4), dtype=np.float32)
    model, named, optimizer = start(BUILDERS[name])
    train(model, optimizer, batches[:3])
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    state = optimizer_state(optimizer, named)
    assert set(state) == set(named)
    train(model, optimizer, batches[3:])

    resumed, resumed_named, resumed_optimizer = start(BUILDERS[name])
    resumed.set_state_dict(weights)
    load_optimizer_state(resumed_optimizer, state, resumed_named)
    train(resumed, resumed_optimizer, batches[3:])
    for key, param in named.items():
        np.testing.assert_array_equal(resumed_named[key].numpy(), param.numpy(), err_msg=key)
    final, resumed_final = optimizer_state(optimizer, named), optimizer_state(resumed_optimizer, resumed_named)
    for key, accumulators in final.items():
        assert set(accumulators) == set(resumed_final[key])
        for kind, value in accumulators.items():
            np.testing.assert_array_equal(resumed_final[key][kind], value, err_msg=f"{key} {kind}")


@pytest.mark.parametrize("name", ["lars", "sgd"])
def test_a_velocity_per_parameter(name):
    model, named, optimizer = start(BUILDERS[name])
    train(model, optimizer, np.ones((1, 3, 4), np.float32))
    state = optimizer_state(optimizer, named)
    assert {key: list(value) for key, value in state.items()} == {key: ["velocity_0"] for key in named}
    assert all(value["velocity_0"].shape == tuple(named[key].shape) for key, value in state.items())
