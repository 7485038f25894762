"""Parameters with given gradients, for recorded optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import pytest
from paddle import Tensor


def make_params(values: Sequence[np.ndarray]) -> list[Tensor]:
    """Create trainable parameters with these values."""
    params = [paddle.create_parameter(list(value.shape), "float32") for value in values]
    for param, value in zip(params, values, strict=True):
        param.set_value(value)
    return params


def take_step(optimizer: paddle.optimizer.Optimizer, params: Sequence[Tensor], grads: Sequence[np.ndarray]) -> None:
    """Update the parameters with these gradients."""
    loss = sum((p * paddle.to_tensor(g)).sum() for p, g in zip(params, grads, strict=True))
    loss.backward()
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)


@pytest.fixture
def params_of():
    return make_params


@pytest.fixture
def step():
    return take_step
