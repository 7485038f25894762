"""Weight averaging against its formula in NumPy; 1e-6 allows for float32 rounding over the updates."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.errors import CheckpointError
from plsc_mae.optim import WeightAverage

pytestmark = pytest.mark.compat


class Network(nn.Layer):
    """Network with parameters, running statistics and an index table."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1D(4)
        self.register_buffer("index", paddle.arange(9))

    def forward(self, x):
        return self.norm(self.linear(x))


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture
def model():
    paddle.seed(0)
    return Network()


def change(model, rng):
    """Change weights and running statistics as a training step does."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.set_value(tensor.numpy() + rng.standard_normal(tensor.shape).astype(np.float32))


@pytest.fixture
def averaged(model):
    """Return an average that differs from the model's weights."""
    average = WeightAverage(model, 0.75)
    change(model, np.random.default_rng(0))
    average.update()
    return average


def state_of(average):
    return {name: tensor.numpy() for name, tensor in average.state().items()}


def test_follows_parameters_and_buffers(model):
    rng = np.random.default_rng(0)
    average, expected = WeightAverage(model, 0.9), {k: v.astype(np.float64) for k, v in arrays(model).items()}
    assert {"linear.weight", "norm._mean", "norm._variance", "index"} <= set(expected)
    for _ in range(5):
        change(model, rng)
        average.update()
        for name, value in arrays(model).items():
            expected[name] = 0.9 * expected[name] + 0.1 * value
    for name, value in state_of(average).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    # Averaging integers with truncation would make them drift.
    np.testing.assert_array_equal(state_of(average)["index"], np.arange(9))


def test_starts_as_a_copy_that_training_does_not_touch(model):
    before, average = arrays(model), WeightAverage(model, 0.9)
    change(model, np.random.default_rng(0))
    for name, value in state_of(average).items():
        np.testing.assert_array_equal(value, before[name])


def test_is_kept_in_float32(model):
    model.linear.weight.set_value(paddle.ones([3, 4]))
    model.linear.to(dtype="float16")
    average = WeightAverage(model, 0.9999)
    for _ in range(10):
        model.linear.weight.set_value(paddle.full([3, 4], 2.0, "float16"))
        average.update()
    value = state_of(average)["linear.weight"]
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, 2.0 - 0.9999**10, rtol=1e-6)  # each update is below float16's resolution
    with average.applied():
        assert model.linear.weight.dtype == paddle.float16
    assert model.linear.weight.dtype == paddle.float16


def test_applied_swaps_and_puts_back(model, averaged):
    own = arrays(model)
    with averaged.applied():
        for name, value in arrays(model).items():
            np.testing.assert_array_equal(value, state_of(averaged)[name])
        assert (arrays(model)["linear.weight"] != own["linear.weight"]).all()
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, own[name])


def test_what_happens_to_the_model_while_applied_stays_there(model, averaged):
    own, before = arrays(model), state_of(averaged)
    with contextlib.suppress(KeyboardInterrupt), averaged.applied():
        change(model, np.random.default_rng(1))
        raise KeyboardInterrupt
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, own[name])
        np.testing.assert_array_equal(state_of(averaged)[name], before[name])


def test_the_model_trains_on_after_a_swap(model, averaged):
    with averaged.applied():
        model(paddle.rand([4, 3]))
    model(paddle.rand([4, 3])).square().sum().backward()
    assert model.linear.weight.grad is not None
    assert not model.linear.weight.stop_gradient


def test_state_goes_into_another_average(averaged):
    state, other = state_of(averaged), WeightAverage(Network(), 0.75)
    other.load(state)
    for name, value in state_of(other).items():
        np.testing.assert_array_equal(value, state[name])
    del state["linear.bias"]
    with pytest.raises(CheckpointError, match=r"linear\.bias.*missing.*\[4\]"):
        other.load(state)
    with pytest.raises(CheckpointError, match=r"linear\.bias.*\[5\].*\[4\]"):
        other.load({**state, "linear.bias": np.zeros(5, np.float32)})
