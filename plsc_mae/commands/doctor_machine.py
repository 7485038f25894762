"""The doctor's checks of this machine: packages, settings, memory, folders and the launcher's variables.

The functions `examine_*` yield the problems as findings.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from plsc_mae.commands.doctor_findings import Finding, error, warning

PACKAGES = (
    "plsc_mae",
    "paddlepaddle",
    "paddlepaddle-gpu",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "opencv-python",
    "visualdl",
    "protobuf",
    "safetensors",
)
_UNSET = "unset it for the launch"
LAUNCH_TRAPS = {
    "CUDA_VISIBLE_DEVICES": f"paddle.distributed.launch stops on it on a machine without GPU: {_UNSET}",
    "PADDLE_TRAINER_ENDPOINTS": f"the launcher takes it for the settings of another job: {_UNSET}",
    "HTTP_PROXY": f"machines of a distributed run cannot connect through a proxy: {_UNSET}",
    "ALL_PROXY": f"machines of a distributed run cannot connect through a proxy: {_UNSET}",
}
LAUNCH_VARIABLES = (
    "PADDLE_NNODES",
    "PADDLE_MASTER",
    "PADDLE_TRAINERS_NUM",
    "PADDLE_LOCAL_SIZE",
    "PADDLE_TRAINER_ID",
    "PADDLE_CURRENT_ENDPOINT",
    "PADDLE_DISTRI_BACKEND",
)
OPTIONAL_MODULES = {
    "cv2": "`plsc-mae explain`, `plsc-mae pretrain --image_backend opencv` and images of more than 8 bits need it: "
    "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless",
    "visualdl": "runs write no VisualDL records: install another version of visualdl or protobuf",
}
SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_MB = 512  # for NCCL between the GPUs of a machine
FEW_FILES = 512
FULL_DISK_GB = 5


def version(package: str) -> str:
    """Return the version of an installed package, or "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def examine_packages() -> Iterator[Finding]:
    """Report a missing Paddle and packages that are known to be incompatible, without importing them."""
    if version("paddlepaddle") and version("paddlepaddle-gpu"):
        yield error("paddlepaddle and paddlepaddle-gpu are both installed and overwrite each other: keep one")
    paddle = version("paddlepaddle") or version("paddlepaddle-gpu")
    if not paddle:
        yield error("Paddle is not installed: pip install paddlepaddle, or a GPU wheel, see the README")
    if paddle.startswith("2.") and not version("numpy").startswith("1."):
        yield error(f"Paddle {paddle} needs numpy<2, found {version('numpy')}: pip install 'numpy<2'")


def examine_optional_modules() -> Iterator[Finding]:
    """Import the optional packages that are installed, and report those that cannot be imported."""
    for name, remedy in OPTIONAL_MODULES.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as failure:  # a protobuf mismatch is a TypeError, a missing system library an ImportError
            reason = " ".join(str(failure).split())[:200]
            yield warning(f"{name} is installed but cannot be imported ({reason}): {remedy}")


def examine_environment(gpus: int, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Report variables that mislead the launcher, except in processes that it started, since it sets them itself."""
    if "PADDLE_TRAINER_ID" in environ:
        return
    for name, remedy in LAUNCH_TRAPS.items():
        if name in environ and not (name == "CUDA_VISIBLE_DEVICES" and gpus):
            yield warning(f"{name} is set; {remedy}")
    host = environ.get("PADDLE_MASTER", "").rpartition(":")[0]
    if host and not host.replace(".", "").isdigit():
        yield warning(f"PADDLE_MASTER names {host}, and the launcher waits forever for a host name: use the IP address")


def examine_limits(gpus: int) -> Iterator[Finding]:
    """Report limits of the system that are too low."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < FEW_FILES:
        yield warning(f"a process may open only {files} files, too few for many data workers: ulimit -n 4096")
    if gpus > 1 and os.path.isdir(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).free < SHARED_MEMORY_MB * 2**20:
        yield warning(f"{SHARED_MEMORY} is small, and NCCL may fail between {gpus} GPUs: docker run --shm-size=2g")


def examine_output(folder: str) -> Iterator[Finding]:
    """Check that an output folder, or its nearest existing parent, can be written to and has free space."""
    place = Path(folder).absolute()
    while not os.path.exists(place):  # also False in a folder that may not be entered
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as failure:
        yield error(f"--output_dir {folder}: cannot write to {place}: {failure.strerror}; choose another folder")
        return
    free = shutil.disk_usage(place).free / 1e9
    if free < FULL_DISK_GB:
        yield warning(f"--output_dir {folder}: {free:.1f} GB are free; a training checkpoint of ViT-L takes 4 GB")


def describe_launch(environ: Mapping[str, str] = os.environ) -> str:
    """Return a line with this host's name and address, and the launcher's variables that are set."""
    set_here = " ".join(f"{name}={environ[name]}" for name in LAUNCH_VARIABLES if name in environ)
    host = socket.gethostname()
    try:
        address = environ.get("POD_IP") or socket.gethostbyname(host)
    except OSError:
        address = "unknown"
    others = " (other machines cannot reach it there: set POD_IP=ADDRESS)" if address.startswith("127.") else ""
    return f"host: {host}, address {address}{others}; launcher: {set_here or 'none'}"
