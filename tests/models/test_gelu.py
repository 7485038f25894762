"""The GELU on CPU: values and gradients of Paddle's operator and of the formula."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from plsc_mae.models import gelu as module
from plsc_mae.models.gelu import PART, gelu

pytestmark = pytest.mark.compat


def values_and_gradients(function, x, grad):
    x = paddle.to_tensor(x, stop_gradient=False)
    out = function(x)
    out.backward(paddle.to_tensor(grad))
    return out.numpy(), x.grad.numpy()


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return (3 * rng.standard_normal((7, PART // 4 + 5))).astype(np.float32)  # the last part is shorter


def test_values_and_gradients(x):
    grad = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    out, slope = values_and_gradients(gelu, x, grad)
    wide = x.astype(np.float64)
    phi = np.vectorize(math.erf)(wide / math.sqrt(2)) / 2 + 0.5
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    # A few roundings of numbers of size 10; the gradient is at most 1.13 times |grad| < 5.
    np.testing.assert_allclose(out, wide * phi, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, grad * (phi + wide * density), rtol=1e-6, atol=2e-6)


def test_agrees_with_paddle(x, monkeypatch):
    ours = values_and_gradients(gelu, x, np.ones_like(x))
    monkeypatch.setattr(module, "_mkl", lambda: None)
    theirs = values_and_gradients(gelu, x, np.ones_like(x))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6)


def test_bits_do_not_depend_on_the_position(x):
    """A batch split among processes or micro-batches must give the same bits."""
    x = paddle.to_tensor(x)
    whole = gelu(x).numpy()
    for i in range(len(x)):
        assert gelu(x[i]).numpy().tobytes() == whole[i].tobytes()


def test_special_values():
    special = np.array([0.0, -0.0, np.nan, np.inf, 40.0, -40.0, 1e-30], np.float32)
    out, slope = values_and_gradients(gelu, special, np.ones_like(special))
    assert out[:2].tolist() == [0, 0]
    assert np.isnan(out[2])
    assert out[3] == np.inf
    assert out[4:6].tolist() == [40, 0]
    assert slope[4:6].tolist() == [1, 0]
    assert slope[0] == slope[6] == 0.5


def test_strided_and_frozen_inputs(x):
    turned = paddle.to_tensor(x).transpose([1, 0])
    np.testing.assert_allclose(gelu(turned).numpy(), gelu(paddle.to_tensor(x)).numpy().T)
    assert gelu(turned).stop_gradient
    with paddle.no_grad():
        assert gelu(paddle.to_tensor(x, stop_gradient=False)).stop_gradient


def test_other_dtypes_and_empty_tensors_are_paddles():
    double = paddle.to_tensor(np.linspace(-3, 3, 7))
    np.testing.assert_array_equal(gelu(double).numpy(), F.gelu(double).numpy())
    assert gelu(paddle.zeros([0, 4])).shape == [0, 4]
