"""The check of collectives reports wrong results and errors of any of them; the collectives are faked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plsc_mae.gpu_check import collectives
from plsc_mae.gpu_check.collectives import check_collectives

pytestmark = pytest.mark.compat


def world(elsewhere: float = 0.0, *, gpu: bool = False) -> SimpleNamespace:
    """Return two processes, of which the other one has `elsewhere` wrong collectives."""
    return SimpleNamespace(
        rank=0, size=2, process=0, processes=2, is_gpu=gpu, largest=lambda values: [max(*values, elsewhere)]
    )


@pytest.fixture
def trials(monkeypatch):
    def fake(**results: bool | Exception) -> None:
        def trial(result):
            def run(_):
                if isinstance(result, Exception):
                    raise result
                return result

            return run

        monkeypatch.setattr(
            collectives, "_trials", lambda _: ((name, trial(result)) for name, result in results.items())
        )

    return fake


def test_exact_collectives(trials):
    trials(first=True, second=True)
    result = check_collectives(world())
    assert result.outcome == "ok"
    assert "2 of 2 collectives over 2 processes are exact (gloo)" in result.summary


def test_one_error_hides_no_other_result(trials):
    trials(broken=RuntimeError("NCCL error 3"), wrong=False, right=True)
    result = check_collectives(world(gpu=True))
    assert result.outcome == "differs"
    assert result.numbers == {"broken": "RuntimeError: NCCL error 3", "wrong": "wrong", "right": "exact"}
    assert "1 of 3" in result.summary
    assert "(NCCL); wrong: broken, wrong" in result.summary


def test_wrong_results_in_another_process(trials):
    trials(right=True)
    result = check_collectives(world(1.0))
    assert result.outcome == "differs"
    assert "1 wrong in another" in result.summary


def test_types_that_runs_use():
    """float16 and bfloat16 are weights under --amp_level O2, which need a GPU."""
    names = [name for name, _ in collectives._trials(world())]
    expected = {"sum float32", "sum float64", "sum int64", "max float64", "max int64", "broadcast bool", "barrier"}
    assert expected < set(names)
    on_gpu = [name for name, _ in collectives._trials(world(gpu=True))]
    assert set(on_gpu) - set(names) == {"broadcast float16", "broadcast bfloat16"}
