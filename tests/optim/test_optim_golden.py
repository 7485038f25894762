"""Schedule, groups and AdamW against the originals, and the official loop over 20 updates.

Tolerances as recorded with the golden data: schedules 1e-12; AdamW 1e-5; trajectories 1e-4 for losses and 1e-3 for
final norms, their own float32-against-float64 noise being 1e-7.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae import weights
from plsc_mae.config import MAEConfig
from plsc_mae.methods.base import StepOutput, Task
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.optim import ParamGroup, build_adamw, cosine_at, lr_at, optimizer_state, scaled_lr, weight_decay_groups
from plsc_mae.parallel.world import World
from plsc_mae.train.setup import build_stepper
from plsc_mae.train.step import Accumulation

pytestmark = pytest.mark.compat


def test_schedule(golden):
    case = golden("mae/fb_lr_schedule")
    for i, setting in enumerate(case.meta["settings"]):
        found = [lr_at(epoch, **setting) for epoch in case[f"input/epochs{i}"]]
        np.testing.assert_allclose(found, case[f"output/lr{i}"], rtol=1e-12)


def test_schedule_of_mae_priv_and_mae_pytorch(golden):
    case = golden("mae/priv_cosine_schedule")
    for i, setting in enumerate(case.meta["settings"]):
        per_epoch = setting["niter_per_ep"]
        warmup = setting.get("warmup_steps", setting["warmup_epochs"] * per_epoch)
        span = {"base": setting["base_value"], "final": setting["final_value"], "warmup_updates": warmup}
        span |= {"updates": setting["epochs"] * per_epoch, "start": setting.get("start_warmup_value", 0.0)}
        found = [cosine_at(update, **span) for update in range(setting["epochs"] * per_epoch)]
        np.testing.assert_allclose(found, case[f"output/schedule{i}"], rtol=1e-12)


def test_base_rate_scales_with_the_batch():
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


@pytest.mark.once
def test_weight_decay_groups(golden):
    case = golden("mae/fb_add_weight_decay")
    model = plsc_mae.create_model("mae_vit_base_patch16")
    groups = weight_decay_groups(model.named_parameters(), 0.05)
    assert [group.weight_decay for group in groups] == case.meta["weight_decay"]
    for i, group in enumerate(groups):
        foreign = set(weights.export(model, "facebook", {name: np.zeros(1) for name in group.names}))
        assert foreign == set(case[f"output/group{i}_names"].tolist())


def test_adamw_equals_pytorch(golden):
    case, params = golden("mae/torch_adamw"), []
    for i, shape in enumerate(case.meta["shapes"]):
        params.append(paddle.create_parameter(shape, "float32"))
        params[-1].set_value(case[f"input/p{i}"])
    groups = [
        ParamGroup([], [p for p, of in zip(params, case.meta["group_of_param"], strict=True) if of == g], **rule)
        for g, rule in enumerate(case.meta["groups"])
    ]
    optimizer = build_adamw(groups, betas=tuple(case.meta["betas"]), eps=case.meta["eps"])
    for step, lr in enumerate(case.meta["lr_per_step"]):
        optimizer.set_lr(lr)
        loss = sum((p * paddle.to_tensor(case[f"input/g{step}_{i}"])).sum() for i, p in enumerate(params))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        for i, param in enumerate(params):
            np.testing.assert_allclose(param.numpy(), case[f"output/p{step}_{i}"], rtol=1e-5, atol=1e-7)
    state = optimizer_state(optimizer, {str(i): p for i, p in enumerate(params)})
    for i in range(len(params)):
        np.testing.assert_allclose(state[str(i)]["moment1_0"], case[f"output/exp_avg_{i}"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(state[str(i)]["moment2_0"], case[f"output/exp_avg_sq_{i}"], rtol=1e-5, atol=1e-7)


class FloatTask(Task):
    """MAE task on float images, as in the golden trajectories."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        out = self.model(batch["image"], batch["noise"], 0.75, loss_only=True)
        return StepOutput(out.loss, {})


@pytest.mark.parametrize("name", ["accum1", "accum1_rawpix", "accum2"])
def test_twenty_updates_of_the_official_loop(golden, name):
    case, start = golden(f"mae/fb_trajectory_{name}"), golden("mae/fb_pretrain_tiny")
    args, sizes = case.meta["args"], dict(case.meta["ctor"])
    sizes.pop("norm_layer")
    model = MaskedAutoencoder(**sizes)
    weights.load(model, start.group("param"), dialect="facebook")
    task = FloatTask(model)
    options = {key: args[key] for key in ("lr", "min_lr", "warmup_epochs", "epochs", "accum_iter")}
    config = MAEConfig(weight_decay=case.meta["weight_decay"], **options)
    stepper = build_stepper(task, config, World("cpu"))
    images, noise, per_epoch = case["input/images"], case["input/noise"], case.meta["iters_per_epoch"]
    groups, schedule = Accumulation(len(noise), config.accum_iter), task.schedule(config, config.lr, per_epoch)
    for i in range(len(noise)):
        group = groups.group(i)
        if i == group.start:
            stepper.set_rates(schedule(i / per_epoch, group.number))
        batch = {"image": paddle.to_tensor(images[i % len(images)]), "noise": paddle.to_tensor(noise[i])}
        out = stepper.forward_backward(batch, group_size=group.size, last=i == group.last)
        assert stepper.optimizer.get_lr() == pytest.approx(case["output/lr"][i], rel=1e-12)
        assert float(out.loss) == pytest.approx(case["output/loss"][i], rel=1e-4), i
        if i == group.last:
            assert float(stepper.apply_update().norm) == pytest.approx(case["output/grad_norm"][i], rel=1e-3), i

    final = weights.export(model, "facebook")
    for foreign, norm in zip(case["names"].tolist(), case["output/final_param_l2"], strict=True):
        if not foreign.endswith("qkv.bias"):  # the k part is noise, see the golden README
            assert np.linalg.norm(final[foreign].astype(np.float64)) == pytest.approx(norm, rel=1e-3), foreign
    for foreign, value in case.group("output/final").items():
        if not foreign.endswith("qkv.bias"):
            np.testing.assert_allclose(final[foreign], value, rtol=1e-3, atol=1e-4 * np.abs(value).max())
