"""SGD against PyTorch's rule in float64; 1e-6 allows for float32 rounding over eight steps."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.optim import SGD, ParamGroup, build_sgd, set_weight_decay

pytestmark = pytest.mark.compat

RATES = (0.0, 0.5, 0.3, 0.3, 1.0, 0.1, 0.0, 0.2)


def torch_sgd(start, grads, weight_decay, nesterov):
    """torch.optim.SGD with momentum 0.9: its first velocity is the gradient, as with a velocity of zero."""
    p, buffer = start.astype(np.float64), np.zeros(start.shape)
    for lr, grad in zip(RATES, grads, strict=True):
        g = grad + weight_decay * p
        buffer = 0.9 * buffer + g
        p = p - lr * (g + 0.9 * buffer if nesterov else buffer)
    return p


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_eight_steps(params_of, step, nesterov, weight_decay):
    rng = np.random.default_rng(0)
    shapes = (4, 5), (5,)
    start = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    grads = [[rng.standard_normal(shape, dtype=np.float32) for shape in shapes] for _ in RATES]
    params = params_of(start)
    optimizer = build_sgd([ParamGroup([], params, weight_decay)], nesterov=nesterov)
    for lr, grad in zip(RATES, grads, strict=True):
        optimizer.set_lr(lr)
        step(optimizer, params, grad)
    for i, param in enumerate(params):
        expected = torch_sgd(start[i], [grad[i] for grad in grads], weight_decay, nesterov)
        np.testing.assert_allclose(param.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_groups_have_their_own_rate_and_decay(params_of, step):
    params = params_of([np.ones(2, np.float32)] * 3)
    groups = [
        ParamGroup([], params[:1], 0.0),
        ParamGroup([], params[1:2], 0.0, lr_scale=0.1),
        ParamGroup([], params[2:], 0.1, lr_scale=0.5),
    ]
    optimizer = build_sgd(groups, momentum=0.0)
    optimizer.set_lr(0.1)
    set_weight_decay(optimizer, groups, 2.0)
    step(optimizer, params, [np.ones(2, np.float32)] * 3)
    # p - lr * scale * (g + decay * p)
    np.testing.assert_allclose([p.numpy()[0] for p in params], [0.9, 0.99, 1 - 0.05 * 3.0], rtol=1e-6)


def test_decay_is_not_left_on_the_parameters(params_of, step):
    """Paddle stores a group's decay in its parameters, where the next optimizer of the network would find it."""
    params = params_of([np.ones(2, np.float32)])
    SGD(0.1, params, weight_decay=0.5)
    other = paddle.optimizer.SGD(0.1, params)
    step(other, params, [np.zeros(2, np.float32)])
    np.testing.assert_array_equal(params[0].numpy(), 1.0)


def test_follows_a_scheduler(params_of, step):
    scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=1, gamma=0.5)
    params = params_of([np.ones(1, np.float32)])
    optimizer = SGD(scheduler, params, momentum=0.0)
    for _ in range(2):
        step(optimizer, params, [np.ones(1, np.float32)])
        scheduler.step()
    assert params[0].item() == pytest.approx(1 - 0.1 - 0.05)
