"""GPUs for which the installed Paddle has kernels, and the 16-bit types of mixed precision on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from plsc_mae.errors import ConfigError, flag

Capability = tuple[int, int]  # compute capability, (major, minor)
VOLTA, AMPERE = (7, 0), (8, 0)

# The machine code in the libraries of paddlepaddle-gpu 2.6.2 from PyPI (CUDA 11.8), which contain no PTX.
CUDA_11_ARCHITECTURES = (61, 70, 75, 80, 86)
# paddle.amp.auto_cast disables itself below these capabilities, with a warning.
AMP_CAPABILITIES: dict[str, Capability] = {"bfloat16": AMPERE, "float16": VOLTA}


def current_capability() -> Capability:
    """Return the compute capability (major, minor) of this process's GPU."""
    major, minor = paddle.device.cuda.get_device_capability()
    return major, minor


def has_gpu() -> bool:
    """Return True if Paddle is built for GPUs and can use at least one."""
    return bool(paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0)


def compiled_architectures(version: Any = None) -> tuple[int, ...]:
    """Return the architectures for which Paddle's wheel has machine code, such as 80 for compute capability 8.0.

    Args:
        version: the module `paddle.version`, which is the default, or a stand-in for it.

    Returns:
        The `cuda_archs` of Paddle 3, or those of Paddle 2.6's public wheel for CUDA 11; () if unknown.
    """
    version = paddle.version if version is None else version
    if hasattr(version, "cuda_archs"):
        return tuple(int(architecture) for architecture in version.cuda_archs())
    return CUDA_11_ARCHITECTURES if str(version.cuda()).startswith("11.") else ()


def has_kernels(capability: Capability, architectures: Sequence[int]) -> bool:
    """Return True if machine code for `architectures` runs on a GPU: code for x.y runs on x.z if z >= y.

    Without any architecture, the answer is unknown and the result is True.
    """
    major, minor = capability
    return not architectures or any(a // 10 == major and a % 10 <= minor for a in architectures)


def check_kernels() -> None:
    """Check that Paddle has kernels for this process's GPU; if Paddle's architectures are unknown, assume that it has.

    Raises:
        ConfigError: it has none, so the first operation on the GPU would fail or silently compute nothing.
    """
    capability, architectures = current_capability(), compiled_architectures()
    if has_kernels(capability, architectures):
        return
    compiled = ", ".join(f"{architecture // 10}.{architecture % 10}" for architecture in architectures)
    raise ConfigError(
        f"{_description(capability)}, but this wheel of Paddle {paddle.__version__} was compiled for {compiled}: "
        f"install the wheel that `plsc-mae doctor` names, or use {flag('device')} cpu"
    )


def amp_types(capability: Capability) -> tuple[str, ...]:
    """Return the 16-bit types of mixed precision on a GPU, the preferred one first."""
    return tuple(dtype for dtype, needed in AMP_CAPABILITIES.items() if capability >= needed)


def unsupported_type(dtype: str) -> str:
    """Return the reason why mixed precision with `dtype` is impossible on this process's GPU, for a message."""
    needed = ".".join(map(str, AMP_CAPABILITIES[dtype]))
    return f"{_description(current_capability())}, and mixed precision in {dtype} needs {needed} or higher"


def _description(capability: Capability) -> str:
    return f"{paddle.device.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}"
