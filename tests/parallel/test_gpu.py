"""GPUs without kernels in the installed Paddle, or without a 16-bit type, are refused before anything runs on them."""

from __future__ import annotations

from types import SimpleNamespace

import paddle
import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.parallel.gpu import CUDA_11_ARCHITECTURES, amp_types, compiled_architectures, has_kernels
from plsc_mae.parallel.world import World

pytestmark = pytest.mark.compat

PASCAL, VOLTA, AMPERE, ADA, HOPPER = (6, 1), (7, 0), (8, 0), (8, 9), (9, 0)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [(PASCAL, True), (VOLTA, True), (AMPERE, True), (ADA, True), ((6, 0), False), (HOPPER, False), ((12, 0), False)],
)
def test_machine_code_runs_on_later_chips_of_its_generation(capability, expected):
    assert has_kernels(capability, CUDA_11_ARCHITECTURES) is expected
    assert has_kernels(capability, ())


def test_the_wheel_names_its_architectures():
    assert compiled_architectures(SimpleNamespace(cuda_archs=lambda: [80, 90])) == (80, 90)
    assert compiled_architectures(SimpleNamespace(cuda=lambda: "11.8")) == CUDA_11_ARCHITECTURES
    assert compiled_architectures(SimpleNamespace(cuda=lambda: "12.0")) == ()
    assert compiled_architectures() == ()  # Paddle for CPU


def test_types_of_mixed_precision():
    assert [amp_types(c) for c in (PASCAL, VOLTA, AMPERE, HOPPER)] == [
        (),
        ("float16",),
        ("bfloat16", "float16"),
        ("bfloat16", "float16"),
    ]


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_gpu_without_kernels_is_refused(device, monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle, "set_device", lambda _: None)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: HOPPER)
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(paddle.version, "cuda_archs", lambda: [70, 86], raising=False)
    with pytest.raises(ConfigError, match=r"H100 has .* 9\.0, .* Paddle .* compiled for 7\.0, 8\.6: .* doctor.* cpu"):
        World(device)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: ADA)
    assert World(device).is_gpu
