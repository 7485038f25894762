"""AdamW by one call per group: equal bit for bit to Paddle's AdamW, and so are the states."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.optim import ParamGroup, build_adamw, optimizer_state, set_weight_decay
from plsc_mae.optim.param_groups import paddle_groups

pytestmark = pytest.mark.compat

SHAPES = [(7, 5), (5,), (3, 4, 2), (1,), (6, 6)]


def make_groups() -> list[ParamGroup]:
    rng = np.random.default_rng(0)
    params = {f"p{i}": paddle.create_parameter(list(shape), "float32") for i, shape in enumerate(SHAPES)}
    for param in params.values():
        param.set_value(rng.standard_normal(param.shape, np.float32))
    groups = (("p0", "p2"), 0.05, 1.0), (("p1",), 0.0, 1.0), (("p3", "p4"), 0.05, 0.3)
    return [ParamGroup(list(names), [params[n] for n in names], decay, scale) for names, decay, scale in groups]


def train(optimizer, groups: list[ParamGroup]) -> dict[str, np.ndarray]:
    """Make five updates by drawn gradients; p3 has none in the second."""
    rng = np.random.default_rng(1)
    params = {name: param for group in groups for name, param in zip(group.names, group.params, strict=True)}
    for update in range(5):
        optimizer.set_lr(0.1 / (update + 1))
        set_weight_decay(optimizer, groups, 0.05 + 0.01 * update)
        for name, param in params.items():
            gradient = paddle.to_tensor(rng.standard_normal(param.shape, np.float32))
            if (name, update) != ("p3", 1):
                (param * gradient).sum().backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    state = {
        f"{name}/{key}": value
        for name, entry in optimizer_state(optimizer, params).items()
        for key, value in entry.items()
    }
    return {name: param.numpy() for name, param in params.items()} | state


def test_it_equals_paddle():
    groups, own = make_groups(), make_groups()
    plain = paddle.optimizer.AdamW(0.0, beta2=0.95, epsilon=1e-6, parameters=paddle_groups(groups), weight_decay=0.0)
    expected = train(plain, groups)
    found = train(build_adamw(own, betas=(0.9, 0.95), eps=1e-6), own)
    assert found.keys() == expected.keys()
    assert len(found) == 5 * len(SHAPES)  # the parameter, two moments, two powers
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_equal_settings_share_a_call(monkeypatch):
    groups, calls = make_groups(), []
    optimizer = build_adamw(groups)
    update = paddle._C_ops.fused_adam_
    monkeypatch.setattr("plsc_mae.optim.adamw._C_ops.fused_adam_", lambda *args: calls.append(args) or update(*args))
    train(optimizer, groups)
    assert [len(call[0]) for call in calls[:3]] == [2, 1, 2]
    assert len(calls) == 5 * len(groups)
