"""Device and memory of eager tensors and of variables of a program that `paddle.jit` traces.

Code that may be traced uses neither `super()` nor `x.size`, which Paddle 2.6 cannot trace; `0 in x.shape` works.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

Floats = npt.NDArray[np.float32]


def is_eager(x: Tensor) -> bool:
    """Return whether `x` is an eager tensor, not a variable of a traced program."""
    return isinstance(x, paddle.Tensor)


def on_gpu(x: Tensor) -> bool:
    """Return whether operations on `x` run on a GPU.

    A variable of a traced program has no place; its program is expected to run on Paddle's current device.
    """
    return bool(x.place.is_gpu_place()) if is_eager(x) else paddle.get_device().startswith("gpu")


def on_cpu(x: Tensor) -> bool:
    """Return whether operations on `x` run on a CPU, see `on_gpu`."""
    return bool(x.place.is_cpu_place()) if is_eager(x) else paddle.get_device().startswith("cpu")


def contiguous(x: Tensor) -> Tensor:
    """Return `x` in contiguous memory; a variable of a traced program is returned unchanged: it is never a view."""
    return x.contiguous() if is_eager(x) else x


def memory(x: Tensor) -> Floats:
    """Return the memory of a contiguous float32 tensor on a CPU as a flat array; the caller must keep `x` alive."""
    pointer = ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (x.size,))
