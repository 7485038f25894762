"""Checks of the chip: its kernels and its copies. The GPU is faked; what it computes, the CPU computes."""

from __future__ import annotations

import paddle
import pytest

from plsc_mae.gpu_check import chip
from plsc_mae.gpu_check.chip import check_copies, check_kernels

pytestmark = pytest.mark.compat
OLD_WHEEL = (61, 70, 75, 80, 86)


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that fakes a GPU of a capability and the architectures of the wheel."""

    def fake(capability: tuple[int, int], compiled: tuple[int, ...]) -> None:
        monkeypatch.setattr(chip, "current_capability", lambda: capability)
        monkeypatch.setattr(chip, "compiled_architectures", lambda: compiled)
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "NVIDIA FAKE")

    return fake


@pytest.mark.parametrize(("capability", "compiled"), [((8, 0), OLD_WHEEL), ((9, 0), (80, 90)), ((9, 0), ())])
def test_a_chip_with_kernels(gpu, capability, compiled):
    gpu(capability, compiled)
    result = check_kernels(True)
    assert result.outcome == "ok"
    assert result.numbers["gpu"] == "NVIDIA FAKE"
    assert result.numbers["sum_of_0_to_999"] == 499500


def test_a_chip_without_kernels_fails_before_any_kernel_runs(gpu, monkeypatch):
    gpu((9, 0), OLD_WHEEL)
    monkeypatch.setattr(paddle, "arange", lambda *_, **__: pytest.fail("a kernel ran"))
    result = check_kernels(True)
    assert result.outcome == "failed"
    for part in ("9.0", "61 70 75 80 86", paddle.__version__):
        assert part in result.summary
    assert result.numbers["mixed_precision"] == "bfloat16 float16"


def test_kernels_that_compute_nothing(gpu, monkeypatch):
    gpu((8, 0), OLD_WHEEL)
    monkeypatch.setattr(paddle, "arange", lambda *_, **__: paddle.zeros([1000], "int64"))
    result = check_kernels(True)
    assert result.outcome == "differs"
    assert "computed 0 instead of 499500" in result.summary


def test_without_a_gpu_the_rule_is_tested(monkeypatch):
    assert check_kernels(False).outcome == "ok"
    monkeypatch.setattr(chip, "has_kernels", lambda *_: True)
    assert check_kernels(False).outcome == "differs"


def test_copies(monkeypatch):
    assert check_copies(False).numbers["wrong"] == 0
    copied = chip.to_device
    monkeypatch.setattr(chip, "to_device", lambda array: copied(array) * int(array[0] > 200))
    result = check_copies(False)
    assert result.outcome == "differs"
    assert 0 < result.numbers["wrong"] < chip.COPIES
    assert f"{result.numbers['wrong']} of {chip.COPIES}" in result.summary
