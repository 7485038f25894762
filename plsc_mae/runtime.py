"""Settings of the process for computing on a CPU. This file does not import Paddle.

Environment variables, which must be set before Paddle is imported:

Paddle's CPU wheel uses Intel's MKL with one thread, and on AMD processors MKL uses slow kernels. Measured on
2 cores, fp32 matmul [788, 768] x [768, 3072]: AMD EPYC 35 -> 79 GFLOP/s with MKL_DEBUG_CPU_TYPE=5, -> 147 with two
threads in addition; Intel Xeon (AVX-512) 84 -> 150 with two threads, while MKL_DEBUG_CPU_TYPE=5 slows it from 69 to 50.
Paddle's strided views, on by default, are copied element by element if a kernel needs them contiguous. Without views, a
training step of a small MAE takes 0.58 s instead of 0.86 s on one core. On GPU, views are cheap and stay on.

The memory allocator: glibc returns freed memory of large tensors to the system, so the next operation needs new
pages, which the system must clear first. See `keep_freed_memory`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

SWITCH = "PLSC_MAE_CPU_SETTINGS"
MAX_WORKERS = 10  # facebookresearch/mae's --num_workers
SETTINGS = ("MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel")


# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
HEAP_STEP = 64 << 20  # bytes by which the heap grows

_added: dict[str, str] = {}  # by `apply_cpu_settings`, in this process


def inherited_environment() -> dict[str, str]:
    """Return the environment for new processes: without what `apply_cpu_settings` added, since they add their own."""
    return {name: value for name, value in os.environ.items() if _added.get(name) != value}


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory that processes here may use together: that of the machine, or of the container if less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:  # no Linux, or control groups of version 1
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


def local_processes(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of training processes on this node, from the launcher's variable PADDLE_LOCAL_SIZE."""
    return int(environ.get("PADDLE_LOCAL_SIZE", "1"))


def count_workers(wanted: int | None) -> int:
    """Return the number of loader processes, which is `wanted` unless that is None.

    The default is this process's share of the cores of the node, at least 1 and at most MAX_WORKERS.
    """
    return min(MAX_WORKERS, max(1, available_cores() // local_processes())) if wanted is None else wanted


def is_amd() -> bool:
    """Return True if /proc/cpuinfo names an AMD processor."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def has_gpu() -> bool:
    """Return True if this machine has an NVIDIA driver, without loading it."""
    return Path("/dev/nvidiactl").exists()


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later tensors, and return whether this was possible.

    An operation on [788, 3072] floats then takes 2 instead of 5 to 10 ms of one core, because its result needs no new
    pages. The process keeps its peak memory until it ends. Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: HEAP_STEP}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def is_on(environ: Mapping[str, str]) -> bool:
    """Return whether SWITCH allows settings for the CPU."""
    return environ.get(SWITCH, "on").lower() not in ("off", "0", "false", "no")


def cpu_settings(environ: Mapping[str, str], cores: int, *, amd: bool, gpu: bool = False) -> dict[str, str]:
    """Return the environment variables to add, {} if SWITCH forbids them.

    MKL_NUM_THREADS divides the cores among the training processes of this node.

    Args:
        environ: the current environment; variables that the user has set are not changed.
        cores: number of available cores.
        amd: True on an AMD processor, where a variable makes MKL use its fast kernels.
        gpu: True on a machine with a GPU, where strided views stay on.
    """
    if not is_on(environ):
        return {}
    # MKL_NUM_THREADS rather than OMP_NUM_THREADS: it takes precedence over the OMP_NUM_THREADS=1 that Paddle's launcher
    # sets, and Paddle prints no warning about it.
    wanted = {"MKL_NUM_THREADS": str(max(1, cores // local_processes(environ)))}
    if amd:
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    if not gpu:
        wanted["FLAGS_use_stride_kernel"] = "0"
    return {name: value for name, value in wanted.items() if name not in environ}


def apply_cpu_settings() -> dict[str, str]:
    """Add the variables of `cpu_settings` to this process's environment and return those added.

    If Paddle is loaded already, nothing is added, and a warning names missing variables. Freed memory is kept even
    then, unless SWITCH forbids it or the machine has a GPU.
    """
    if is_on(os.environ) and not has_gpu():
        keep_freed_memory()
    added = cpu_settings(os.environ, available_cores(), amd=is_amd(), gpu=has_gpu())
    if added and "paddle" in sys.modules:
        warnings.warn(
            f"paddle was imported before plsc_mae, so the CPU settings ({', '.join(added)}) have no effect; import "
            f"plsc_mae first, or set {SWITCH}=off",
            stacklevel=3,
        )
        return {}
    os.environ.update(added)
    _added.update(added)
    return added
