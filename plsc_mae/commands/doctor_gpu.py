"""The doctor's checks of GPUs: the driver as nvidia-smi reports it, and the Paddle wheel that fits it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from plsc_mae.commands.doctor_findings import Finding, error, warning

PADDLE = "3.3.0"
INDEX = "https://www.paddlepaddle.org.cn/packages/stable"
_TIMEOUT = 30  # seconds
_HOPPER, _BLACKWELL = 9.0, 10.0

Version = tuple[int, int]


class Driver(NamedTuple):
    """An NVIDIA driver.

    Attributes:
        version: version of the driver.
        cuda: the newest CUDA version that it supports, (major, minor).
        gpus: names of the GPUs.
        capability: largest compute capability of the GPUs; 0 if the driver does not report it.
    """

    version: str
    cuda: Version
    gpus: tuple[str, ...]
    capability: float

    def __str__(self) -> str:
        counts = [f"{self.gpus.count(name)} x {name}" for name in dict.fromkeys(self.gpus)]
        return f"NVIDIA driver {self.version} for CUDA up to {_dotted(self.cuda)}: {', '.join(counts) or 'no GPU'}"


class Wheel(NamedTuple):
    """The installed Paddle wheel.

    Attributes:
        version: such as "3.3.1".
        cuda: CUDA version that it was built for; None for the CPU wheel.
        visible: number of GPUs that Paddle can use.
    """

    version: str
    cuda: Version | None
    visible: int


def read_driver() -> Driver | str | None:
    """Return the driver that nvidia-smi reports, a description of the failure, or None if nvidia-smi is missing."""
    try:
        banner = _nvidia_smi()
        listed = _nvidia_smi("--query-gpu=name,compute_cap", "--format=csv,noheader", check=False)
        if "compute_cap" in listed:  # a driver older than 2021 reports an error
            listed = _nvidia_smi("--query-gpu=name", "--format=csv,noheader")
    except FileNotFoundError:
        return None
    except OSError as failure:
        return f"nvidia-smi cannot be started: {failure.strerror}"
    except subprocess.TimeoutExpired:
        return f"nvidia-smi does not answer within {_TIMEOUT} s"
    except subprocess.CalledProcessError as failure:
        output = " ".join(f"{failure.stdout} {failure.stderr}".split())
        return f"nvidia-smi fails: {output or failure.returncode}"
    version = re.search(r"(?:Driver|KMD) Version:\s*([\d.]+)", banner)
    cuda = re.search(r"CUDA[^:|]* Version:\s*(\d+)\.(\d+)", banner)
    if version is None or cuda is None:
        return "nvidia-smi prints no driver and CUDA version"
    rows = [line.rpartition(",") if "," in line else (line, "", "0") for line in listed.splitlines() if line.strip()]
    names = tuple(name.strip() for name, _, _ in rows)
    return Driver(version[1], (int(cuda[1]), int(cuda[2])), names, max((_number(row[2]) for row in rows), default=0.0))


def parse_version(text: str) -> Version | None:
    """Return (major, minor); None if `text` is not a version, such as the "False" of Paddle's CPU wheel."""
    found = re.match(r"(\d+)\.(\d+)", str(text))
    return (int(found[1]), int(found[2])) if found else None


def fitting_wheel(driver: Driver) -> str:
    """Return the command that installs the wheel for a driver, or the advice to update the driver.

    A wheel runs with drivers for its CUDA major version and for newer ones; Hopper needs CUDA 12, Blackwell 12.9.
    """
    needed = (12, 9) if driver.capability >= _BLACKWELL else (12, 0) if driver.capability >= _HOPPER else (11, 0)
    if driver.cuda < needed:
        return f"update the driver first: these GPUs need one for CUDA {_dotted(needed)} or newer"
    wheel = "cu129" if needed == (12, 9) else "cu126" if driver.cuda >= (12, 0) else "cu118"
    return f"pip install paddlepaddle-gpu=={PADDLE} -i {INDEX}/{wheel}/"


def examine_gpus(driver: Driver | str | None, wheel: Wheel) -> Iterator[Finding]:
    """Yield a finding if the driver fails, if driver and wheel do not fit each other, or if Paddle can use no GPU."""
    if isinstance(driver, str):
        yield warning(f"{driver}; repair or reinstall the driver to compute on GPU")
        return
    if driver is None or not driver.gpus:
        if wheel.cuda is not None:
            yield warning("Paddle's GPU wheel is installed but there is no GPU or no driver: runs use the CPU")
        return
    remedy = fitting_wheel(driver)
    if wheel.cuda is None:
        yield warning(f"this machine has a GPU but Paddle's CPU wheel: pip uninstall paddlepaddle; {remedy}")
    elif wheel.cuda[0] > driver.cuda[0]:
        yield error(
            f"Paddle's wheel is for CUDA {_dotted(wheel.cuda)}, the driver supports CUDA up to {_dotted(driver.cuda)}: "
            f"{remedy}"
        )
    elif driver.capability >= _HOPPER and wheel.version.startswith("2."):
        yield error(
            f"Paddle {wheel.version} has no kernels for compute capability {driver.capability:g} "
            f"({driver.gpus[0]}): {remedy}"
        )
    elif wheel.visible == 0:
        yield warning("Paddle can use no GPU, so runs use the CPU: check CUDA_VISIBLE_DEVICES")


def _nvidia_smi(*arguments: str, check: bool = True) -> str:
    command = ["nvidia-smi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=check).stdout


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", text) else 0.0


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
