"""The exact (erf) GELU (Hendrycks and Gimpel 2016), fast on CPU too.

Paddle's CPU kernels compute it on one thread and read memory many times: on [3152, 3072] floats, forward and backward
pass take 107 ms of one core, here 63 ms. tests/models/test_gelu.py bounds the differences.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from plsc_mae.models.execution import Floats, is_eager, memory, on_cpu

PART = 1 << 15  # elements that are computed at a time: their intermediate results stay in a core's cache
HIGH_ACCURACY = 2  # VML_HA, at most 1 unit in the last place
DENSITY_AT_0 = np.float32(1 / math.sqrt(2 * math.pi))


def gelu(x: Tensor) -> Tensor:
    """Apply x * Phi(x), where Phi is the standard normal distribution function, to every element.

    If Paddle ships MKL's vector functions, they compute it for eager, non-empty float32 tensors on a CPU; in all other
    cases Paddle's operator does.
    """
    if is_eager(x) and 0 not in x.shape and x.dtype == paddle.float32 and on_cpu(x) and _mkl() is not None:
        return _CPUGELU.apply(x)
    return F.gelu(x)


class _CPUGELU(paddle.autograd.PyLayer):
    """The GELU of a float32 tensor on a CPU. Like Paddle's operator, it saves its input only."""

    @staticmethod
    @np.errstate(all="ignore")  # NaN and infinities cause no warnings, as in Paddle's operator
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = paddle.empty_like(x)
        for a, result, _ in _parts(x, out, out):
            np.multiply(_distribution(a), a, out=result)
        return out

    @staticmethod
    @np.errstate(all="ignore")
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return grad * (Phi(x) + x * phi(x)), where phi is the normal density."""
        (x,) = ctx.saved_tensor()
        grad, out = grad.contiguous(), paddle.empty_like(x)
        density = np.empty(PART, np.float32)
        for a, result, g in _parts(x, out, grad):
            slope = density[: a.size]
            np.multiply(a, a, out=slope)
            slope *= np.float32(-0.5)
            _apply("vmsExp", slope)
            slope *= DENSITY_AT_0
            slope *= a
            slope += _distribution(a)
            np.multiply(slope, g, out=result)
        return out


def _distribution(a: Floats) -> Floats:
    """Return Phi(a) = (1 + erf(a / sqrt(2))) / 2."""
    phi = a * np.float32(math.sqrt(0.5))
    _apply("vmsErf", phi)
    phi += np.float32(1)
    phi *= np.float32(0.5)
    return phi


def _apply(function: str, values: Floats) -> None:
    """Apply a function of MKL to contiguous values in place."""
    library = _mkl()
    assert library is not None
    getattr(library, function)(values.size, values.ctypes.data, values.ctypes.data, HIGH_ACCURACY)


def _parts(*tensors: Tensor) -> Iterator[tuple[Floats, ...]]:
    """Yield the memory of contiguous tensors of one size, PART elements at a time."""
    views = [memory(tensor) for tensor in tensors]
    for start in range(0, views[0].size, PART):
        yield tuple(view[start : start + PART] for view in views)


@functools.cache
def _mkl() -> ctypes.CDLL | None:
    """Return MKL's library of vector functions, or None if Paddle ships none or it cannot be loaded."""
    try:
        library = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libmklml_intel.so"))
        for name in ("vmsErf", "vmsExp"):
            getattr(library, name).argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            getattr(library, name).restype = None
    except (OSError, AttributeError):
        return None
    return library
