"""`plsc-mae doctor`: versions, devices and settings, and what is known to go wrong with them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator

from plsc_mae import runtime
from plsc_mae.config.tools import DoctorConfig

PACKAGES = (
    "plsc_mae",
    "paddlepaddle",
    "paddlepaddle-gpu",
    "numpy",
    "pillow",
    "opencv-python",
    "visualdl",
    "safetensors",
)
LAUNCH_TRAPS = {
    "CUDA_VISIBLE_DEVICES": "without a GPU, paddle.distributed.launch stops on it: unset it for the launch",
    "PADDLE_TRAINER_ENDPOINTS": "it makes the launcher believe in another job: unset it",
    "HTTP_PROXY": "machines of a distributed run cannot find each other through a proxy: unset it for the launch",
    "ALL_PROXY": "machines of a distributed run cannot find each other through a proxy: unset it for the launch",
}
SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_MB = 1024


def run(config: DoctorConfig) -> None:
    """Print what is here, then what is amiss."""
    added = runtime.apply_cpu_settings() or {name: os.environ[name] for name in runtime.SETTINGS if name in os.environ}
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        print(f"  {name:<18} {_version(name) or '-'}")
    import paddle

    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    print(f"devices: {runtime.available_cores()} CPU cores, {gpus} GPUs visible to Paddle")
    settings = " ".join(f"{name}={value}" for name, value in added.items()) or "none"
    print(f"CPU settings: {settings} (switch off with {runtime.SWITCH}=off)")
    if os.path.isdir(SHARED_MEMORY):
        print(f"{SHARED_MEMORY}: {shutil.disk_usage(SHARED_MEMORY).free // 2**20} MB free")
    troubles = list(_troubles(gpus))
    print("\n".join(f"! {trouble}" for trouble in troubles) or "nothing amiss")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _troubles(gpus: int) -> Iterator[str]:
    if _version("paddlepaddle") and _version("paddlepaddle-gpu"):
        yield "paddlepaddle and paddlepaddle-gpu are both installed and overwrite each other: keep one"
    paddle_version = _version("paddlepaddle") or _version("paddlepaddle-gpu")
    if paddle_version.startswith("2.") and not _version("numpy").startswith("1."):
        yield f"Paddle {paddle_version} needs numpy<2, found {_version('numpy')}: pip install 'numpy<2'"
    if _version("paddlepaddle") and shutil.which("nvidia-smi"):
        yield "this machine has an NVIDIA driver but Paddle's CPU wheel: install a GPU wheel, see README"
    for name, remedy in LAUNCH_TRAPS.items():
        if name in os.environ and not (name == "CUDA_VISIBLE_DEVICES" and gpus):
            yield f"{name} is set; {remedy}"
    if os.path.isdir(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).free < SHARED_MEMORY_MB * 2**20:
        yield f"{SHARED_MEMORY} is small, data workers will use pipes: docker run --shm-size=8g"
