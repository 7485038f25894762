"""Checks of the chip itself: that Paddle has kernels for it, and that copies from pinned memory keep their sums."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.data.transfer import to_device
from plsc_mae.gpu_check.results import Number, Result, judged
from plsc_mae.parallel.gpu import amp_types, compiled_architectures, current_capability, has_kernels

COPIES = 20
COPY_BYTES = {True: 128 * 224 * 224 * 3, False: 2**16}  # True: on a GPU, the bytes of 128 images


def check_kernels(gpu: bool) -> Result:
    """Compare the GPU's compute capability with those that Paddle was compiled for and, if it fits, run a kernel.

    The outcome is "failed" if Paddle was compiled for other chips, "differs" if the kernel's result is wrong. Without
    `gpu`, only the rule of the comparison is checked, in two cases whose answers are known.
    """
    if not gpu:
        old = (61, 70, 75, 80, 86)  # of the public wheel of Paddle 2.6.2
        right = has_kernels((8, 0), old) and not has_kernels((9, 0), old)
        return judged(
            "kernels", good=right, summary="the rule accepts an A100 and refuses an H100 for Paddle 2.6.2", numbers={}
        )
    (major, minor), compiled = current_capability(), compiled_architectures()
    numbers: dict[str, Number] = {
        "gpu": paddle.device.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "compiled_for": " ".join(map(str, compiled)) or "unknown",
        "mixed_precision": " ".join(amp_types((major, minor))) or "none",
    }
    if has_kernels((major, minor), compiled):
        # The first kernel of this process; without machine code for the chip it fails or computes nothing.
        total = int(paddle.arange(1000, dtype="int64").sum())
        numbers["sum_of_0_to_999"] = total
        good = total == 499500
        found = "exist" if good else f"exist, but computed {total} instead of 499500 as the sum of 0 to 999"
        return judged("kernels", good=good, summary=f"kernels for {major}.{minor} {found}", numbers=numbers)
    wheel = f"this wheel of Paddle {paddle.__version__} (compiled for {numbers['compiled_for']})"
    summary = f"{wheel} has no kernels for compute capability {major}.{minor}; install the wheel named above"
    return Result("kernels", "failed", summary, numbers)


def check_copies(gpu: bool) -> Result:
    """Copy arrays to the device as training does, sum them there, and compare the sums with those of the sources."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, COPY_BYTES[gpu], np.uint8) for _ in range(COPIES)]
    sums = [_sum(to_device(array)) for array in arrays]  # the sources stay alive until the results are read
    wrong = sum(int(found) != int(array.sum()) for found, array in zip(sums, arrays, strict=True))
    numbers: dict[str, Number] = {"copies": COPIES, "bytes": COPY_BYTES[gpu], "wrong": wrong}
    kind = "non-blocking copies from pinned memory" if gpu else "copies"
    return judged("copies", good=wrong == 0, summary=f"{wrong} of {COPIES} {kind} are wrong", numbers=numbers)


def _sum(values: Tensor) -> Tensor:
    return values.astype("int64").sum()
