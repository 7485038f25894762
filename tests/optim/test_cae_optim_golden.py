"""Schedules by updates against Atten4Vis/CAE, and its training loop over 12 updates.

Tolerances as recorded with the golden data: schedules 1e-10; losses 1e-4, gradient norms and final weights 1e-3. The
final weights of the original move by less than 2e-6 where the first ones change by 3e-7 of their size.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae import weights
from plsc_mae.config import CAEConfig
from plsc_mae.errors import ConfigError
from plsc_mae.methods.cae import CAETask
from plsc_mae.methods.targets import ClassTarget
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.optim import ParamGroup, build_adamw, cosine_at, lr_at, set_weight_decay
from plsc_mae.parallel.world import World
from plsc_mae.train.setup import build_stepper

pytestmark = pytest.mark.compat


def test_schedules(golden):
    case = golden("cae/schedules")
    compared = 0
    for name, setting in case.meta["settings"].items():
        if setting.get("start_warmup_value", 1) != 0:
            continue  # compared below (linear probe), or an unusual start of the warm-up
        updates = setting["epochs"] * setting["niter_per_ep"]
        warmup = setting["warmup_steps"]
        if warmup <= 0:
            warmup = setting["warmup_epochs"] * setting["niter_per_ep"]
        span = {"base": setting["base_value"], "final": setting["final_value"], "updates": updates}
        found = [cosine_at(i, **span, warmup_updates=warmup) for i in range(updates)]
        expected = case[f"output/cosine_scheduler/{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14, err_msg=name)
        compared += 1
    assert compared == 6


def test_schedules_of_linear_probes(golden):
    case = golden("cae/schedules")
    for name in ("linprobe", "short"):
        setting = dict(case.meta["settings"][f"linear_{name}"])
        per_epoch = setting.pop("iters_per_epoch")
        found = [lr_at(i / per_epoch, **setting) for i in range(setting["epochs"] * per_epoch)]
        expected = case[f"output/linear_adjust_learning_rate/{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14, err_msg=name)


def schedule(updates_per_epoch: int, **options):
    """Return the schedule of a CAE run with these options."""
    config = CAEConfig(**options)
    task = CAETask(nn.Identity(), StoredTokens(2), nn.Identity(), 1, config)
    return task.schedule(config, config.lr, updates_per_epoch)


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (0, 0.0),
        (1, 1.200096008e-7),
        (2, 2.400192015e-7),
        (12498, 1.49987999e-3),
        (12499, 1.5e-3),
        (12500, 1.5e-3),
        (250000, 7.849981254e-4),
        (499999, 1.000000002e-5),
    ],
)
def test_the_published_recipe(update, expected):
    """800 epochs of 625 updates, 20 of warm-up; values measured on the original."""
    rates = schedule(625, lr=1.5e-3, min_lr=1e-5, epochs=800, warmup_epochs=20)
    assert rates(0.0, update).lr == pytest.approx(expected, rel=1e-9)
    assert rates(0.0, update).weight_decay == pytest.approx(0.05, rel=1e-12)


def test_warmup_steps_replace_warmup_epochs(golden):
    case = golden("cae/schedules")
    options = {"lr": 1e-3, "min_lr": 1e-6, "epochs": 6, "warmup_epochs": 2, "warmup_steps": 13}
    assert case.meta["settings"]["warmup_steps"]["niter_per_ep"] == 10
    rates = schedule(10, **options)
    found = [rates(0.0, update).lr for update in range(60)]
    np.testing.assert_allclose(found, case["output/cosine_scheduler/warmup_steps"], rtol=1e-10, atol=1e-14)


def test_weight_decay_follows_a_cosine_of_its_own(golden):
    expected = golden("cae/schedules")["output/cosine_scheduler/wd_rise"]
    rates = schedule(10, epochs=6, warmup_epochs=2, weight_decay=0.05, weight_decay_end=0.4)
    found = [rates(0.0, update).weight_decay for update in range(60)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_warmup_as_long_as_the_run_is_refused():
    for options in ({"warmup_epochs": 4}, {"warmup_steps": 40}, {"warmup_steps": 41}):
        with pytest.raises(ConfigError, match=r"updates .*\b40\b.*--warmup_epochs"):
            schedule(10, **{"epochs": 4, "warmup_epochs": 1, **options})
    assert schedule(10, epochs=4, warmup_epochs=1, warmup_steps=39)(0.0, 39).lr == pytest.approx(5e-4)


def test_weight_decay_changes_where_there_is_any():
    params = [paddle.create_parameter([1], "float32") for _ in range(2)]
    groups = [ParamGroup([], [params[0]], weight_decay=0.0), ParamGroup([], [params[1]], weight_decay=0.05)]
    optimizer = build_adamw(groups)
    set_weight_decay(optimizer, groups, 0.5)
    optimizer.set_lr(0.1)
    for param in params:
        param.set_value(paddle.ones([1]))
    (0.0 * (params[0] + params[1])).sum().backward()
    optimizer.step()
    # Without a gradient only the decay acts: p (1 - lr * decay).
    np.testing.assert_allclose([param.item() for param in params], [1.0, 0.95], rtol=1e-6)


class StoredTokens(ClassTarget):
    """Target that takes its tokens from the batch, as in the golden trajectory."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, batch):
        return batch["tokens"]


@pytest.fixture
def task(golden) -> CAETask:
    """Task of the recorded run; its images are already floats."""
    case = golden("cae/cae_trajectory")
    args, sizes = case.meta["args"], dict(case.meta["constructor"])
    sizes["num_decoder_self_attention"] = sizes.pop("decoder_depth")
    del sizes["norm_eps"]
    model = ContextAutoencoder(**sizes)
    assert not weights.load(model, case.group("param"), dialect="cae").missing
    names = ("lr", "min_lr", "epochs", "warmup_epochs", "weight_decay", "weight_decay_end", "clip_grad")
    config = CAEConfig(dual_loss_weight=args["align_loss_weight"], **{name: args[name] for name in names})
    hidden = int(case["input/bool_masked_pos"][0, 0].sum())
    return CAETask(model, StoredTokens(sizes["decoder_num_classes"]), nn.Identity(), hidden, config)


def test_twelve_updates_of_the_official_loop(golden, task):
    case, config, model = golden("cae/cae_trajectory"), task.config, task.model
    stepper = build_stepper(task, config, World("cpu"))
    rates, images = task.schedule(config, config.lr, case.meta["iters_per_epoch"]), case["input/x_int8"]
    task.train()
    recorded = {name: case[f"output/{name}"] for name in ("loss", "loss_main", "mlm_acc")}
    recorded["loss_align"] = case["output/loss_align_weighted"]
    losses = []
    for update in range(case.meta["steps"]):
        applied = rates(update / case.meta["iters_per_epoch"], update)
        assert applied.lr == pytest.approx(case["output/lr_applied"][update], rel=1e-10)
        assert applied.weight_decay == pytest.approx(case["output/weight_decay_applied"][update], rel=1e-10)
        stepper.set_rates(applied)
        batch = {
            "image": paddle.to_tensor(images[update].astype(np.float32) / 64),
            "mask": paddle.to_tensor(case["input/bool_masked_pos"][update]),
            "tokens": paddle.to_tensor(case["input/tokens"][update]),
        }
        out = stepper.forward_backward(task.prepare(batch))
        norm = stepper.apply_update().norm
        for name, values in recorded.items():
            assert float(out.logs[name]) == pytest.approx(values[update], rel=1e-4), f"{name} {update}"
        assert float(norm) == pytest.approx(case["output/grad_norm_preclip"][update], rel=1e-3), update
        losses.append(float(out.loss))
    # An alignment target with outdated weights would differ from the third update.
    lagged = case["output/lagged_teacher_NOT_OFFICIAL/loss"]
    assert (np.abs(lagged / losses - 1) > 1e-3).tolist() == [False] * 2 + [True] * 10

    final, unstable = weights.export(model, "cae"), case.meta["final_param_unstable"]
    expected = {name: value for name, value in case.group("output/final_param").items() if name not in unstable}
    assert len(expected) == len(case.group("param")) - len(unstable)
    for name, value in expected.items():
        np.testing.assert_allclose(final[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    for name, norm in zip(case.meta["names"], case["output/final_param_norm"], strict=True):
        if name in expected:
            assert np.linalg.norm(final[name].astype(np.float64)) == pytest.approx(norm, rel=1e-3), name
