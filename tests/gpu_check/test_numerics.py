"""Checks of numbers find wrong attention, wrong mixed precision and unequal repetitions; the faults are faked."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import paddle
import pytest

from plsc_mae.gpu_check import numerics
from plsc_mae.gpu_check.numerics import check_attention, check_determinism, check_mixed_precision
from plsc_mae.gpu_check.runs import Prepared, prepare, published_runs, run_config
from plsc_mae.models import attention as attention_module
from plsc_mae.models.deterministic import are_deterministic
from plsc_mae.parallel.world import World
from plsc_mae.train.precision import LossScale

pytestmark = pytest.mark.compat


@pytest.fixture
def one_shape(monkeypatch):
    monkeypatch.setattr(numerics, "ATTENTION_SHAPES", ((5, 7, 8), (5, 7, 8)))
    monkeypatch.setattr(numerics, "IMAGES", 1)


def test_sound_attention(one_shape):
    result = check_attention(False)
    assert result.outcome == "ok"
    assert set(result.numbers) == {"float32 5x7x8 plain"}


@pytest.mark.parametrize("fault", [0.01, math.nan])
@pytest.mark.parametrize("part", ["output", "gradient"])
def test_wrong_attention(one_shape, monkeypatch, fault, part):
    right = numerics.attention

    def wrong(q, k, v):
        if attention_module._recording.get() is not None:
            return right(q, k, v)
        return right(q, k, v) + fault if part == "output" else right(q, k * (1 + fault), v)

    monkeypatch.setattr(numerics, "attention", wrong)
    result = check_attention(False)
    assert result.outcome == "differs"
    assert max(result.numbers.values()) > 1e-3


def test_attention_on_a_faked_gpu(one_shape, monkeypatch):
    """A chip without mixed precision is skipped; another one is measured in each of its types."""
    monkeypatch.setattr(numerics, "current_capability", lambda: (6, 1))
    assert check_attention(True).outcome == "skipped"
    monkeypatch.setattr(numerics, "current_capability", lambda: (8, 0))
    monkeypatch.setattr(numerics, "_attention_errors", lambda *sizes: iter([0.0, 0.02 if "float16" in sizes else 0.0]))
    result = check_attention(True)
    assert result.outcome == "differs"  # 0.02 exceeds 8 units of float16
    assert set(result.numbers) == {"bfloat16 5x7x8 flash", "float16 5x7x8 flash"}
    assert "flash" in result.summary


@pytest.mark.parametrize(
    ("loss", "norm", "outcome"),
    [(1.01, 2.1, "ok"), (1.1, 2.0, "differs"), (1.0, 3.0, "differs"), (math.nan, 2.0, "differs")],
)
def test_mixed_precision(monkeypatch, loss, norm, outcome):
    monkeypatch.setattr(numerics, "prepare", lambda *_: None)
    monkeypatch.setattr(numerics, "_loss_and_norm", lambda *args: (1.0, 2.0) if args[-1] == "none" else (loss, norm))
    result = check_mixed_precision(False)
    assert result.outcome == outcome
    assert len(result.numbers) == 4 * len(list(published_runs()))


def test_a_gpu_without_mixed_precision_is_skipped(monkeypatch):
    monkeypatch.setattr(numerics, "current_capability", lambda: (6, 1))
    assert check_mixed_precision(True).outcome == "skipped"


def test_loss_and_norm_leave_the_weights_alone():
    run, world = next(published_runs()), World("cpu")
    prepared = prepare(run, run_config(run, gpu=False), world)
    before = [param.numpy().copy() for param in prepared.task.parameters()]
    first = numerics._loss_and_norm(prepared, world, "none")
    assert numerics._loss_and_norm(prepared, world, "auto") == first
    assert all(map(math.isfinite, first))
    assert all((old == new.numpy()).all() for old, new in zip(before, prepared.task.parameters(), strict=True))


@pytest.mark.parametrize(("overflows", "norm"), [(2, 3.0), (99, math.inf)])
def test_overflows_of_float16_halve_the_loss_scale(monkeypatch, overflows, norm):
    stepper = SimpleNamespace(scaler=LossScale(), forward_backward=lambda _: SimpleNamespace(loss=1.0))
    count = itertools.count()
    stepper.apply_update = lambda _: SimpleNamespace(norm=math.inf if next(count) < overflows else 3.0)
    run = next(published_runs())
    prepared = Prepared(run_config(run, gpu=False), SimpleNamespace(prepare=lambda batch: batch), {})
    monkeypatch.setattr(Prepared, "stepper", lambda *_: stepper)
    assert numerics._loss_and_norm(prepared, None, "float16") == (1.0, norm)
    assert stepper.scaler.value == 2.0 ** (16 - min(overflows, numerics.LOSS_SCALES))


def test_digests_of_updates_repeat_and_depend_on_the_data(monkeypatch):
    run, world = next(published_runs()), World("cpu")
    digest = numerics._updated(run, world, gpu=False)
    assert numerics._updated(run, world, gpu=False) == digest
    monkeypatch.setattr(numerics, "UPDATES", 2)
    assert numerics._updated(run, world, gpu=False) != digest


@pytest.mark.parametrize("always", [False, True])
def test_repetitions_with_other_bits(one_shape, monkeypatch, always):
    """As on a GPU: without --deterministic that is expected, with it the check reports a difference."""
    monkeypatch.setattr(numerics, "published_runs", lambda: iter(()))
    count = itertools.count()
    monkeypatch.setattr(numerics, "_looked_up", lambda: str(next(count)) if always or not are_deterministic() else "")
    result = check_determinism(False)
    assert result.outcome == ("differs" if always else "ok")
    assert result.numbers["table lookups fast"] is False
    assert result.numbers["table lookups deterministic"] is not always
    assert result.numbers["attention fast"] is True
    assert result.summary.startswith(f"{1 if always else 2} of 2 repetitions")
    assert not are_deterministic()


def test_fast_kernels_return_after_an_error(monkeypatch):
    def broken(*_: object, **__: object) -> str:
        assert are_deterministic()  # these are measured first, before cuBLAS reads its variable
        raise RuntimeError

    monkeypatch.setattr(numerics, "_updated", broken)
    with pytest.raises(RuntimeError):
        check_determinism(False)
    assert not are_deterministic()


def test_lookups_repeat_rows():
    assert 10 * numerics.TABLE[0] < numerics.LOOKUPS
    assert numerics._looked_up() == numerics._looked_up()
    assert paddle.get_device() == "cpu"
