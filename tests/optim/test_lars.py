"""LARS against the originals: facebookresearch/mae, Atten4Vis/CAE and BUPT-PRIV/MAE-priv.

Tolerances as recorded with the golden data (1e-5 relative, 1e-7 and 1e-6 absolute): norms are summed in another order.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.methods.base import StepOutput, Task
from plsc_mae.optim import LARS, SGD, ParamGroup, build_lars, optimizer_state, set_weight_decay
from plsc_mae.optim.lars import l2_norm
from plsc_mae.train.step import Stepper

pytestmark = pytest.mark.compat


def test_six_steps_of_facebook_mae(golden, params_of, step):
    case = golden("mae/fb_lars")
    hyper, count = case.meta["hparams"], len(case.meta["shapes"])
    params = params_of([case[f"input/p{i}"] for i in range(count)])
    optimizer = LARS(hyper.pop("lr"), params, **hyper)
    for n in range(6):
        step(optimizer, params, [case[f"input/g{n}_{i}"] for i in range(count)])
        state = optimizer_state(optimizer, {str(i): p for i, p in enumerate(params)})
        for i, param in enumerate(params):
            np.testing.assert_allclose(param.numpy(), case[f"output/p{n}_{i}"], rtol=1e-5, atol=1e-7)
            velocity = state[str(i)]["velocity_0"]
            np.testing.assert_allclose(velocity, case[f"output/mu{n}_{i}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("setting", "weight_decay"), [("wd0", 0.0), ("wd1e-2", 0.01)])
def test_six_steps_of_cae_under_a_changing_rate(golden, params_of, step, setting, weight_decay):
    case = golden("cae/lars")
    params = params_of([case["param/w"], case["param/b"]])
    optimizer = build_lars([ParamGroup([], params, weight_decay)])
    for n, lr in enumerate(case.meta["lrs"]):
        optimizer.set_lr(lr)
        step(optimizer, params, [case[f"input/grad_{setting}_{n}_{name}"] for name in "wb"])
        for name, param in zip("wb", params, strict=True):
            np.testing.assert_allclose(param.numpy(), case[f"output/{setting}_step{n}_{name}"], rtol=1e-5, atol=1e-6)


def test_six_steps_of_mae_priv(golden, params_of, step):
    case = golden("mae/priv_lars")
    hyper = case.meta["hparams"]
    params = params_of([case[f"input/p{i}"] for i in range(3)])
    groups = [ParamGroup([], params[:1], 0.0), ParamGroup([], params[1:], hyper["weight_decay"])]
    optimizer = build_lars(groups, rule="mae_priv")
    optimizer.set_lr(hyper["lr"])
    for n in range(6):
        step(optimizer, params, [case[f"input/g{n}_{i}"] for i in range(3)])
        for i, param in enumerate(params):
            np.testing.assert_allclose(param.numpy(), case[f"output/p{n}_{i}"], rtol=1e-5, atol=1e-7)


def test_the_official_linear_probe(golden, params_of, step):
    """Apply the three recorded gradients to the head."""
    case, names = golden("mae/fb_linprobe_tiny"), ("weight", "bias")
    start = golden("mae/fb_vit_tiny_cls")
    params = params_of([start[f"param/head.{name}"] for name in names])
    optimizer = LARS(float(case["input/lr"]), params)
    for n in range(3):
        step(optimizer, params, [case[f"grad{n}/head.1.{name}"] for name in names])
    for name, param in zip(names, params, strict=True):
        np.testing.assert_allclose(param.numpy(), case[f"output/final_head.1.{name}"], rtol=1e-5, atol=1e-6)


def test_mae_priv_without_decay_is_plain_sgd(params_of, step):
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((4, 3), dtype=np.float32), rng.standard_normal((3, 4, 3), dtype=np.float32)
    results = []
    for build in (lambda p: LARS(0.1, p, rule="mae_priv"), lambda p: SGD(0.1, p)):
        params = params_of([start])
        optimizer = build(params)
        for grad in grads:
            step(optimizer, params, [grad])
        results.append(params[0].numpy())
    np.testing.assert_array_equal(*results)


def test_rate_and_decay_of_a_group(params_of, step):
    """Compute one step from zero velocity: p - lr * scale * trust * |p| / |g + wd p| * (g + wd p)."""
    rng = np.random.default_rng(1)
    values, grads = (list(rng.standard_normal((2, 4, 3), dtype=np.float32)) for _ in range(2))
    params = params_of(values)
    groups = [ParamGroup([], params[:1], 0.0), ParamGroup([], params[1:], 0.1, lr_scale=0.25)]
    optimizer = build_lars(groups)
    optimizer.set_lr(2.0)
    set_weight_decay(optimizer, groups, 0.5)
    step(optimizer, params, grads)
    for value, grad, param, decay, scale in zip(values, grads, params, (0.0, 0.5), (1.0, 0.25), strict=True):
        direction = grad + decay * value
        ratio = 0.001 * np.linalg.norm(value.astype(np.float64)) / np.linalg.norm(direction.astype(np.float64))
        np.testing.assert_allclose(param.numpy(), value - 2.0 * scale * ratio * direction, rtol=1e-6, atol=1e-7)


def test_norms_of_large_tensors():
    """Sequential summation of 2 million squares in float32 has a relative error of 6e-4."""
    x = np.random.default_rng(2).random((768, 3072), dtype=np.float32)
    assert float(l2_norm(paddle.to_tensor(x))) == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-6)


class Regression(Task):
    """Frozen trunk with a trainable head, like a linear probe."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        for param in self.model[0].parameters():
            param.stop_gradient = True

    def forward(self, batch):
        return StepOutput(self.model(batch["x"]).square().mean(), {})


@pytest.mark.parametrize("optimizer_class", [LARS, SGD])
def test_stepper_trains_what_is_not_frozen(optimizer_class):
    paddle.seed(0)
    task = Regression()
    start = {name: tensor.numpy() for name, tensor in task.model.state_dict().items()}
    optimizer = optimizer_class(0.05, task.parameters())
    stepper, batch, losses = Stepper(task, optimizer, []), {"x": paddle.rand([8, 3])}, []
    for _ in range(5):
        losses.append(float(stepper.forward_backward(batch).loss))
        assert stepper.apply_update().applied
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in task.model.state_dict().items() if (tensor.numpy() != start[name]).any()}
    assert changed == {"1.weight", "1.bias"}


@pytest.mark.parametrize("optimizer_class", [LARS, SGD])
def test_a_step_with_infinite_gradients_is_skipped(params_of, step, optimizer_class):
    """GradScaler is inactive on CPU, so the test sets its flag."""
    params = params_of([np.ones((2, 2), np.float32)])
    optimizer = optimizer_class(0.1, params)
    optimizer._set_auxiliary_var("found_inf", paddle.to_tensor([True]))
    step(optimizer, params, [np.full((2, 2), np.inf, np.float32)])
    assert optimizer._get_auxiliary_var("found_inf")
    np.testing.assert_array_equal(params[0].numpy(), 1.0)
    optimizer._set_auxiliary_var("found_inf", paddle.to_tensor([False]))
    step(optimizer, params, [np.ones((2, 2), np.float32)])
    assert not optimizer._get_auxiliary_var("found_inf")
    assert (params[0].numpy() < 1.0).all()
