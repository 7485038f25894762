"""The loss scale follows the rules of Paddle's GradScaler, and training under it equals training without."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.methods.base import StepOutput
from plsc_mae.optim import ParamGroup, build_adamw
from plsc_mae.train import step
from plsc_mae.train.step import FLOAT32, LossScale, Precision, Stepper

pytestmark = pytest.mark.compat


def test_it_halves_at_once_and_doubles_after_many_good_updates():
    scale = LossScale(True, initial=8.0, incr_every_n_steps=3)
    course = []
    for good in (True, True, False, True, True, True, True, False, False, False, False, False):
        scale.update(good=good)
        course.append(scale.value)
    assert course == [8, 8, 4, 4, 4, 8, 8, 4, 2, 1, 1, 1]
    assert scale.at_floor


def test_the_state_is_that_of_paddles_and_goes_on():
    scale = LossScale(True)
    for good in (True, False, True, True):
        scale.update(good=good)
    state = scale.state_dict()
    # paddle.amp.GradScaler.state_dict, which is empty on CPU.
    assert set(state) == {
        *("scale", "incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf"),
        *("incr_count", "decr_count", "use_dynamic_loss_scaling"),
    }
    assert state["scale"].tolist() == [32768.0]
    again = LossScale(True)
    again.load_state_dict(state)
    assert (again.value, again.incr_count) == (32768.0, 2)
    assert again.state_dict() == state


def test_without_float16_there_is_none():
    scale = LossScale(False)
    loss = paddle.ones([])
    assert scale.scale(loss) is loss
    scale.update(good=False)
    assert (scale.value, scale.state_dict(), scale.is_enable()) == (1.0, {}, False)


class Regression(nn.Layer):
    """A network whose loss overflows where the batch says so."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, batch):
        loss = self.head(batch["x"]).square().mean() * batch["factor"]
        return StepOutput(loss, {"loss": loss.detach()})


@pytest.fixture
def train(monkeypatch):
    """Train in float32, with the loss scale of a precision; returns weights and norms."""
    monkeypatch.setattr(step, "autocast", lambda _: contextlib.nullcontext())

    def run(precision: Precision, factors: list[float], clip_grad: float | None) -> tuple[np.ndarray, list[float]]:
        paddle.seed(0)
        task = Regression()
        params = list(task.parameters())
        optimizer = build_adamw([ParamGroup(["weight", "bias"], params, 0.1)])
        optimizer.set_lr(0.01)
        stepper = Stepper(task, params, optimizer, clip_grad=clip_grad, precision=precision)
        norms = []
        for factor in factors:
            batch = {"x": paddle.rand([8, 3]), "factor": paddle.to_tensor(factor)}
            norms.append(float(stepper(batch)[1]))
        return task.head.weight.numpy(), norms

    return run


@pytest.mark.parametrize("clip_grad", [None, 0.01])
def test_scaled_gradients_give_the_updates_of_unscaled_ones(train, clip_grad):
    weights, norms = train(Precision("float16", ""), [1.0, 2.0, 3.0], clip_grad)
    expected, expected_norms = train(FLOAT32, [1.0, 2.0, 3.0], clip_grad)
    assert norms == expected_norms  # a power of 2 rounds nothing
    # With clipping, one product of both factors is rounded once where two were.
    np.testing.assert_allclose(weights, expected, rtol=0 if clip_grad is None else 1e-6)


def test_an_overflow_is_passed_over(train):
    weights, norms = train(Precision("float16", ""), [1.0, 3e38, 2.0], None)
    assert not np.isfinite(norms[1])
    assert np.isfinite(weights).all()
    assert (weights != train(Precision("float16", ""), [1.0], None)[0]).all()
