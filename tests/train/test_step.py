"""The loss scale follows the rules of Paddle's GradScaler, and training under it equals training without."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae.methods.base import StepOutput, Task
from plsc_mae.optim import Rates, build_adamw
from plsc_mae.train.precision import FLOAT32, LossScale
from plsc_mae.train.step import (
    Accumulation,
    AccumulationGroup,
    Stepper,
    UpdateResult,
    divide_gradients,
    squared_norm,
    squared_norm_of_pieces,
)

pytestmark = pytest.mark.compat


def test_it_halves_at_once_and_doubles_after_many_good_updates():
    scale = LossScale(8.0, incr_every_n_steps=3)
    course = []
    for good in (True, True, False, True, True, True, True, False, False, False, False, False):
        scale.update(good=good)
        course.append(scale.value)
    assert course == [8, 8, 4, 4, 4, 8, 8, 4, 2, 1, 1, 1]
    assert scale.at_floor


def test_the_state_is_that_of_paddles_and_goes_on():
    scale = LossScale()
    for good in (True, False, True, True):
        scale.update(good=good)
    state = scale.state_dict()
    # paddle.amp.GradScaler.state_dict, which is empty on CPU.
    assert set(state) == {
        *("scale", "incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf"),
        *("incr_count", "decr_count", "use_dynamic_loss_scaling"),
    }
    assert state["scale"].tolist() == [32768.0]
    again = LossScale()
    again.load_state_dict(state)
    assert (again.value, again.incr_count) == (32768.0, 2)
    assert again.state_dict() == state


def test_without_float16_there_is_none():
    scale = LossScale(None)
    scale.update(good=False)
    assert (scale.value, scale.state_dict(), scale.enabled) == (1.0, {}, False)


def test_the_last_group_of_an_epoch_may_be_shorter():
    accumulation = Accumulation(iterations=7, accum_iter=3)
    assert accumulation.updates == 3
    groups = [accumulation.group(i) for i in range(7)]
    assert groups == 3 * [AccumulationGroup(0, 0, 3)] + 3 * [AccumulationGroup(1, 3, 3)] + [AccumulationGroup(2, 6, 1)]
    assert [group.last for group in groups] == [2, 2, 2, 5, 5, 5, 6]
    assert [i for i in range(7) if accumulation.is_start(i)] == [0, 3, 6]


class Regression(Task):
    """A network whose loss overflows where the batch says so."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(3, 2)

    def forward(self, batch):
        loss = self.model(batch["x"]).square().mean() * batch["factor"]
        return StepOutput(loss, {"loss": loss.detach()})


SCALED = FLOAT32._replace(initial_loss_scale=2.0**16)  # on CPU Paddle computes nothing in 16 bits


def train(precision, factors, clip_grad=None) -> tuple[np.ndarray, list[UpdateResult]]:
    """Train in float32; returns weights and the results of the updates."""
    paddle.seed(0)
    task = Regression()
    groups = task.param_groups(0.1)
    stepper = Stepper(task, build_adamw(groups), groups, clip_grad=clip_grad, precision=precision)
    stepper.set_rates(Rates(0.01, 0.1))
    results = []
    for factor in factors:
        stepper.forward_backward({"x": paddle.rand([8, 3]), "factor": paddle.to_tensor(factor)})
        results.append(stepper.apply_update())
    return task.model.weight.numpy(), results


def norms(results) -> list[float]:
    return [float(result.norm) for result in results]


@pytest.mark.parametrize("clip_grad", [None, 0.01])
def test_scaled_gradients_give_the_updates_of_unscaled_ones(clip_grad):
    weights, results = train(SCALED, [1.0, 2.0, 3.0], clip_grad)
    expected, expected_results = train(FLOAT32, [1.0, 2.0, 3.0], clip_grad)
    assert norms(results) == norms(expected_results)  # a power of 2 rounds nothing
    # With clipping, one product of both factors is rounded once where two were.
    np.testing.assert_allclose(weights, expected, rtol=0 if clip_grad is None else 1e-6)


def test_an_overflow_is_not_applied():
    weights, results = train(SCALED, [1.0, 3e38, 2.0])
    assert [result.applied for result in results] == [True, False, True]
    assert not np.isfinite(norms(results)[1])
    assert np.isfinite(weights).all()
    assert (weights != train(SCALED, [1.0])[0]).all()


def test_parts_of_a_group_add_up_to_the_whole_batch():
    paddle.seed(0)
    x, weights = paddle.rand([9, 3]), []
    for parts in (1, 3):
        paddle.seed(1)
        task = Regression()
        groups = task.param_groups(0.1)
        stepper = Stepper(task, build_adamw(groups), groups)
        stepper.set_rates(Rates(0.01, 0.1))
        for i, part in enumerate(paddle.split(x, parts)):
            stepper.forward_backward({"x": part, "factor": paddle.ones([])}, group_size=parts, last=i + 1 == parts)
        assert stepper.apply_update().applied
        weights.append(task.model.weight.numpy())
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_a_norm_of_pieces_is_that_of_all_elements(limit):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (5,), (2, 2, 2), (1,))]
    tensors = [paddle.to_tensor(array) for array in arrays] + [paddle.full([3], 0.1, "float64")]
    expected = sum(np.square(array, dtype=np.float64).sum() for array in arrays) + 3 * 0.1**2
    for found in (squared_norm_of_pieces(tensors, limit), squared_norm(tensors[:-1]) + 3 * 0.1**2):
        assert found.shape == []
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_gradients_are_divided_in_place():
    params = [paddle.create_parameter([3], "float32"), paddle.create_parameter([2, 2], "float32")]
    (params[0].sum() * 3 + params[1].sum() * 8).backward()
    gradients = [param.grad for param in params]
    divide_gradients(params, paddle.to_tensor(4.0))
    assert [float(param.grad.max()) for param in params] == [0.75, 2.0]
    assert [float(gradient.max()) for gradient in gradients] == [0.75, 2.0]
