"""Drivers as nvidia-smi reports them, and the wheel for each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from plsc_mae.commands.doctor_gpu import Driver, Wheel, examine_gpus, fitting_wheel, parse_version, read_driver

BANNER = """Sun Nov 22 12:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {version:<22} Driver Version: {version:<14} CUDA Version: {cuda:<8} |
|-----------------------------------------+------------------------+----------------------+
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program of that name on the PATH."""

    def install(body: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def answering(version: str, cuda: str, listed: str) -> str:
    return f"""case "$*" in
*query-gpu=name,compute_cap*) printf '{listed}';;
*query-gpu=name*) printf 'Tesla V100\\nTesla V100\\n';;
*) cat <<'END'
{BANNER.format(version=version, cuda=cuda)}END
esac"""


def test_driver_and_gpus_are_read(nvidia_smi):
    nvidia_smi(answering("550.54.15", "12.4", "NVIDIA A100-SXM4-40GB, 8.0\\n" * 2 + "NVIDIA H100, 9.0\\n"))
    driver = read_driver()
    assert driver == Driver("550.54.15", (12, 4), ("NVIDIA A100-SXM4-40GB",) * 2 + ("NVIDIA H100",), 9.0)
    told = "NVIDIA driver 550.54.15 for CUDA up to 12.4: 2 x NVIDIA A100-SXM4-40GB, 1 x NVIDIA H100"
    assert str(driver) == told


def test_an_old_driver_does_not_know_compute_capabilities(nvidia_smi):
    nvidia_smi(answering("450.80.02", "11.0", 'Field "compute_cap" is not a valid field to query.\\n'))
    assert read_driver() == Driver("450.80.02", (11, 0), ("Tesla V100",) * 2, 0.0)


def test_a_tool_that_fails(nvidia_smi):
    nvidia_smi('echo "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."; exit 9')
    told = read_driver()
    assert isinstance(told, str)
    assert told.startswith("nvidia-smi fails: NVIDIA-SMI has failed because")
    (found,) = examine_gpus(told, Wheel("3.3.1", None, 0))
    assert not found.stops


def test_a_tool_that_says_something_else(nvidia_smi):
    nvidia_smi("echo hello")
    assert read_driver() == "nvidia-smi prints no driver and CUDA version"


def test_a_tool_that_cannot_be_started(nvidia_smi, tmp_path):
    nvidia_smi("")
    (tmp_path / "bin" / "nvidia-smi").write_bytes(b"\x7fELF")
    assert read_driver() == "nvidia-smi cannot be started: Exec format error"


def test_no_tool(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_driver() is None


@pytest.mark.parametrize(
    ("cuda", "capability", "wheel"),
    [
        ((11, 4), 8.0, "cu118/"),
        ((12, 0), 8.0, "cu126/"),
        ((12, 8), 9.0, "cu126/"),
        ((13, 0), 7.0, "cu126/"),
        ((12, 9), 10.0, "cu129/"),
        ((12, 8), 12.0, "update the driver first: these GPUs need one for CUDA 12.9 or newer"),
        ((11, 8), 9.0, "update the driver first: these GPUs need one for CUDA 12.0 or newer"),
        ((10, 2), 7.0, "update the driver first: these GPUs need one for CUDA 11.0 or newer"),
    ],
)
def test_the_wheel_for_a_driver(cuda, capability, wheel):
    assert fitting_wheel(Driver("1", cuda, ("a",), capability)).endswith(wheel)


A100 = Driver("550", (12, 4), ("A100",), 8.0)
H100 = A100._replace(gpus=("H100",), capability=9.0)


@pytest.mark.parametrize(
    ("driver", "wheel", "told", "stops"),
    [
        (A100, Wheel("3.3.1", None, 0), "a GPU but Paddle's CPU wheel: pip uninstall paddlepaddle; pip install", False),
        (A100, Wheel("3.3.1", (12, 6), 0), "CUDA_VISIBLE_DEVICES", False),
        (
            A100._replace(cuda=(11, 4)),
            Wheel("3.3.1", (12, 6), 0),
            "supports CUDA up to 11.4: pip install .*cu118/",
            True,
        ),
        (H100, Wheel("2.6.2", (11, 8), 8), r"Paddle 2.6.2 has no kernels for compute capability 9 \(H100\)", True),
        (None, Wheel("3.3.1", (12, 6), 0), "no GPU or no driver", False),
    ],
)
def test_wheels_that_do_not_fit(driver, wheel, told, stops):
    (found,) = examine_gpus(driver, wheel)
    assert re.search(told, found.text)
    assert found.stops is stops


@pytest.mark.parametrize(
    ("driver", "wheel"),
    [(A100, Wheel("2.6.2", (11, 8), 1)), (H100, Wheel("3.3.1", (12, 6), 8)), (None, Wheel("3.3.1", None, 0))],
)
def test_wheels_that_fit(driver, wheel):
    assert list(examine_gpus(driver, wheel)) == []


def test_versions():
    assert parse_version("12.6.1") == (12, 6)
    assert parse_version("False") is None
