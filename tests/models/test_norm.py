"""Layer norm on CPU: values and gradients of the formula and of Paddle's layer."""

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.models.norm import PART, LayerNorm

pytestmark = pytest.mark.compat
WIDTH = 96


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, PART // WIDTH - 7, WIDTH)) * 3 + 5  # several parts, the last one shorter
    return [a.astype(np.float32) for a in (x, rng.standard_normal(x.shape), rng.standard_normal((2, WIDTH)))]


def gradients(kind, x, grad, parameters, frozen=()):
    layer = kind(WIDTH, epsilon=1e-6)
    for name, values in zip(("weight", "bias"), parameters, strict=True):
        getattr(layer, name).set_value(values)
        getattr(layer, name).stop_gradient = name in frozen
    x = paddle.to_tensor(x, stop_gradient="x" in frozen)
    out = layer(x)
    out.backward(paddle.to_tensor(grad))
    tensors = (x, layer.weight, layer.bias)
    return [out.numpy()] + [None if t.grad is None else t.grad.numpy() for t in tensors]


def test_values_and_gradients(arrays):
    x, grad, (weight, bias) = (a.astype(np.float64) for a in arrays)
    std = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normalized = (x - x.mean(-1, keepdims=True)) / std
    g = grad * weight
    expected = (
        normalized * weight + bias,
        (g - g.mean(-1, keepdims=True) - normalized * (g * normalized).mean(-1, keepdims=True)) / std,
        (grad * normalized).sum((0, 1)),
        grad.sum((0, 1)),
    )
    for ours, right in zip(gradients(LayerNorm, *arrays), expected, strict=True):
        # float32 rounds inputs around 5 with a deviation of 3, and sums of 1,000 numbers of size 1.
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=2e-5)


def test_agrees_with_paddle(arrays):
    ours, theirs = (gradients(kind, *arrays) for kind in (LayerNorm, nn.LayerNorm))
    assert ours[0].tobytes() == theirs[0].tobytes()
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)  # Paddle sums 1,000 numbers one after another


@pytest.mark.parametrize("frozen", [("x",), ("weight", "bias"), ("x", "bias")])
def test_frozen_parts_have_no_gradient_and_do_not_change_the_others(arrays, frozen):
    whole, part = gradients(LayerNorm, *arrays), gradients(LayerNorm, *arrays, frozen)
    for name, a, b in zip(("output", "x", "weight", "bias"), whole, part, strict=True):
        assert (b is None) if name in frozen else a.tobytes() == b.tobytes()


def test_nothing_trainable_and_other_dtypes_are_paddles(arrays):
    x = arrays[0]
    assert gradients_of_frozen(x).stop_gradient
    layer = LayerNorm(WIDTH).to(dtype="float64")
    assert layer(paddle.to_tensor(x.astype(np.float64))).dtype == paddle.float64
    assert LayerNorm(WIDTH)(paddle.zeros([0, WIDTH])).shape == [0, WIDTH]


def gradients_of_frozen(x):
    layer = LayerNorm(WIDTH)
    for parameter in layer.parameters():
        parameter.stop_gradient = True
    return layer(paddle.to_tensor(x))
