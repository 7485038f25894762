"""The choice between fast kernels and those that repeat their bits on GPU; Paddle's GPU wheel is faked."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.models import attention as attention_module
from plsc_mae.models import deterministic
from plsc_mae.models.attention import attention
from plsc_mae.models.deterministic import CUBLAS_WORKSPACE, FLAGS, choose_kernels, table_rows

pytestmark = pytest.mark.compat
ENVIRONMENT = {"FLAGS_cudnn_deterministic": False, "FLAGS_embedding_deterministic": 0}


@pytest.fixture
def flags(monkeypatch):
    """Return the flags of a faked GPU wheel; its user has turned on the exhaustive search."""
    values = {**ENVIRONMENT, "FLAGS_cudnn_exhaustive_search": True}
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle, "get_flags", lambda names: {name: values[name] for name in names})
    monkeypatch.setattr(paddle, "set_flags", values.update)
    monkeypatch.setattr(deterministic, "_deterministic", False)
    monkeypatch.delenv(CUBLAS_WORKSPACE[0], raising=False)
    return values


def test_flags_are_set_and_restored(flags, monkeypatch):
    before = dict(flags)
    choose_kernels(deterministic=False)
    assert flags == before
    choose_kernels(deterministic=True)
    assert flags == FLAGS
    assert deterministic.os.environ[CUBLAS_WORKSPACE[0]] == CUBLAS_WORKSPACE[1]
    choose_kernels(deterministic=True)
    choose_kernels(deterministic=False)
    assert flags == before


def test_the_users_workspace_of_cublas_stays(flags, monkeypatch):
    monkeypatch.setenv(CUBLAS_WORKSPACE[0], ":16:8")
    choose_kernels(deterministic=True)
    assert deterministic.os.environ[CUBLAS_WORKSPACE[0]] == ":16:8"


def test_flash_attention_only_without_it(flags, monkeypatch):
    """The chip is faked, and the kernel is one that only marks its result."""
    monkeypatch.setattr(attention_module, "_capability", lambda _: (8, 0))
    monkeypatch.setattr(attention_module.F, "scaled_dot_product_attention", lambda q, *_: paddle.zeros_like(q))
    monkeypatch.setattr(attention_module, "uses_flash", lambda *_, plain, **__: not plain)
    q = paddle.ones([2, 3, 5, 8])
    for deterministic_kernels in (False, True, False):
        choose_kernels(deterministic=deterministic_kernels)
        used_flash = not attention(q, q, q).any()
        assert used_flash != deterministic_kernels


def test_a_cpu_wheel_has_nothing_to_choose(monkeypatch):
    monkeypatch.setattr(deterministic, "_deterministic", False)
    monkeypatch.setattr(paddle, "set_flags", lambda flags: pytest.fail(f"set {flags}"))
    monkeypatch.delenv(CUBLAS_WORKSPACE[0], raising=False)
    choose_kernels(deterministic=True)
    assert CUBLAS_WORKSPACE[0] not in deterministic.os.environ


def test_rows_of_a_table_are_those_of_gather_in_both_directions():
    """Bit for bit on CPU, also where rows repeat, so that seeded runs did not change with the kernel."""
    rng = np.random.default_rng(0)
    values, upstream = (rng.standard_normal(shape).astype("float32") for shape in ([30, 12], [4, 50, 12]))
    ids = paddle.to_tensor(rng.integers(0, 30, [4, 50]))
    found = []
    for rows in (table_rows, lambda table, ids: paddle.gather(table, ids.flatten()).reshape([*ids.shape, -1])):
        table = paddle.to_tensor(values, stop_gradient=False)
        out = rows(table, ids)
        (out * paddle.to_tensor(upstream)).sum().backward()
        found.append((out.numpy(), table.grad.numpy()))
    for ours, gathered in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, gathered)
