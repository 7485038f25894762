"""The oracle's AdamW and schedules against recordings of PyTorch and of the originals."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.parity.oracle.training import AdamW, rate_by_epochs, rate_by_updates

pytestmark = [pytest.mark.compat, pytest.mark.once]


def test_schedules():
    """The published schedules: MAE with peak 2.4e-3 over 800 epochs, CAE with 1.5e-3 over 800 epochs of 625 updates."""
    mae = {"peak": 2.4e-3, "updates": 800, "warmup": 40, "floor": 0.0}
    assert [rate_by_epochs(e, **mae) for e in (0, 20, 40)] == [0.0, 1.2e-3, 2.4e-3]
    assert rate_by_epochs(100, **mae) == pytest.approx(2.363280319e-3, rel=1e-9)
    assert rate_by_epochs(400, **mae) == pytest.approx(1.299095215e-3, rel=1e-9)
    cae = {"peak": 1.5e-3, "updates": 500_000, "warmup": 12_500, "floor": 1e-5}
    expected = {
        0: 0.0,
        1: 1.200096008e-7,
        12_498: 1.49987999e-3,
        12_499: 1.5e-3,
        12_500: 1.5e-3,
        250_000: 7.849981254e-4,
    }
    for update, rate in expected.items():
        assert rate_by_updates(update, **cae) == pytest.approx(rate, rel=1e-8)


def test_adamw(golden):
    """Six updates of parameters with and without decay; the recorded group with its own rate is excluded."""
    case = golden("mae/torch_adamw")
    chosen = [i for i, group in enumerate(case.meta["group_of_param"]) if group < 2]
    assert {case[f"input/p{i}"].ndim > 1 for i in chosen} == {False, True}
    optimizer = AdamW({str(i): case[f"input/p{i}"].astype(np.float64) for i in chosen}, betas=tuple(case.meta["betas"]))
    for step, lr in enumerate(case.meta["lr_per_step"]):
        optimizer.step({str(i): case[f"input/g{step}_{i}"].astype(np.float64) for i in chosen}, lr)
        for i in chosen:
            expected = case[f"output/p{step}_{i}"]  # float32
            np.testing.assert_allclose(optimizer.parameters[str(i)], expected, rtol=1e-6, atol=1e-7)
