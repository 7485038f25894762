"""Emulation on a CPU of Paddle's mixed precision O1 on a GPU.

On a GPU, Paddle casts the inputs of every operation by two lists: to 16 bits if the operation is on the white list, to
float32 if it is on the black list, and otherwise to float32 if any input is float32. A CPU has no 16-bit kernels. So
the emulation casts by the same rule, computes the operation in float32 and rounds its outputs to 16 bits. The backward
pass goes through the same casts, so gradients are rounded too. The package is shown tensors on a GPU and takes its code
paths for GPUs.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
import pytest
from paddle import Tensor, _C_ops
from paddle.amp.amp_lists import black_list, white_list

from plsc_mae.commands import classify
from plsc_mae.train import setup
from plsc_mae.train.precision import choose_precision

CAPABILITY = (8, 0)  # an A100
# The white list of Paddle 3.3 is that of 2.6 and these, as far as the package uses the operations.
WHITE_SINCE_PADDLE_3 = {"linear_v2", "flash_attn"}
# Operations under their names on the lists, where these differ.
LISTED = {
    "matmul": "matmul_v2",
    "mean": "reduce_mean",
    "sum": "reduce_sum",
    "mean_all": "mean",
    "cross_entropy_with_softmax": "softmax_with_cross_entropy",
    "embedding": "lookup_table_v2",
}
# Operators of two tensors; with a Python number, the arithmetic ones run the operation `scale`.
OPERATORS = {
    **dict.fromkeys(("__add__", "__radd__"), "add"),
    **dict.fromkeys(("__sub__", "__rsub__"), "subtract"),
    **dict.fromkeys(("__mul__", "__rmul__"), "multiply"),
    **dict.fromkeys(("__truediv__", "__div__"), "divide"),
    **{"__rtruediv__": "divide", "__pow__": "pow", "__matmul__": "matmul", "__getitem__": "slice"},
    **{"__ge__": "greater_equal", "__gt__": "greater_than", "__le__": "less_equal", "__lt__": "less_than"},
    **{"__eq__": "equal", "__ne__": "not_equal"},
}
SCALES = {"__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__div__"}
# Names of Python functions and gradients whose kernels have other names.
KERNELS = {
    **{"assign_out": "assign", "add_n_grad": "assign", "cast_grad": "cast", "unbind_grad": "stack"},
    **{"scale_grad": "scale", "div_scale_grad": "scale", "split_grad": "concat"},
}
FLOATS = (paddle.float16, paddle.bfloat16, paddle.float32)


class Emulation:
    """Emulated mixed precision and what it observed.

    Args:
        dtype: "float16", "bfloat16", or "float32" for the code paths of a GPU without mixed precision.
        paddle_3: use the lists of Paddle 3.3, else those of Paddle 2.6.

    Attributes:
        kernels: number of calls by (kernel, dtype), in forward and backward passes.
        casts: number of casts that the lists caused, by operation.
        mixed: number of operations with inputs of 16 and 32 bits, by operation and line of the package.
        attention: number of calls of the flash kernel, and of softmax on attention weights, by "flash" and "plain".
    """

    def __init__(self, dtype: str, *, paddle_3: bool) -> None:
        self.dtype, self.low = dtype, getattr(paddle, dtype)
        listed = white_list().get(dtype, {}).get("O1", set())
        self.white = listed | WHITE_SINCE_PADDLE_3 if paddle_3 else listed - WHITE_SINCE_PADDLE_3
        self.black = black_list().get(dtype, {}).get("O1", set())
        self.kernels: collections.Counter[tuple[str, str]] = collections.Counter()
        self.casts: collections.Counter[str] = collections.Counter()
        self.mixed: collections.Counter[str] = collections.Counter()
        self.attention: collections.Counter[str] = collections.Counter()
        self._autocasts, self._inside = False, False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Emulate until `patch` is undone."""
        self._cast = _C_ops.cast
        for name in dir(_C_ops):
            if not name.startswith("_") and callable(getattr(_C_ops, name)):
                patch.setattr(_C_ops, name, functools.partial(self._call, name, getattr(_C_ops, name)))
        for name in OPERATORS:
            if hasattr(Tensor, name):
                patch.setattr(Tensor, name, self._operator(name))
        patch.setattr(F, "scaled_dot_product_attention", functools.partial(self._call, "flash_attn", self._flash))
        patch.setattr(paddle.amp, "auto_cast", self._auto_cast)
        on_gpu(patch, self.dtype)

    # ------------------------------------------------------------------------------------------------ operations

    def _call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run an operation as it would run on a GPU; operations inside of it are its own business."""
        if self._inside:
            return function(*args, **options)
        self._inside = True
        try:
            in_place = name.endswith("_")
            if self._autocasts and not in_place and name != "cast":
                args, options = self._by_lists(name, args, options)
            dtypes = {x.dtype for x in floats(args, options)}
            if len(dtypes) > 1:
                self.mixed[f"{name} in {caller()}"] += 1
            if in_place or name == "cast" or dtypes <= {paddle.float32}:
                out = function(*args, **options)
                self._record(name, args, options, out)
                return out
            raised = function(*self._to(paddle.float32, args), **self._to(paddle.float32, options))
            self._record(name, args, options, raised)
            return self._to(min(dtypes - {paddle.float32}, key=str), raised)
        finally:
            self._inside = False

    def _by_lists(self, name: str, args: Any, options: Any) -> tuple[Any, Any]:
        """Cast the inputs of an operation by Paddle's lists and its rule of promotion."""
        listed = LISTED.get(name, name)
        inputs = list(floats(args, options))
        if listed in self.white:
            wanted = self.low
        elif listed in self.black or any(x.dtype == paddle.float32 for x in inputs):
            wanted = paddle.float32
        else:
            wanted = self.low
        self.casts[name] += sum(x.dtype != wanted for x in inputs)
        return self._to(wanted, args), self._to(wanted, options)

    def _to(self, dtype: Any, values: Any) -> Any:
        """Cast the float tensors in nested lists, tuples and dictionaries."""
        if isinstance(values, dict):
            return {key: self._to(dtype, value) for key, value in values.items()}
        if isinstance(values, (list, tuple)):
            return type(values)(self._to(dtype, value) for value in values)
        if isinstance(values, Tensor) and values.dtype in FLOATS and values.dtype != dtype:
            return self._cast(values, dtype)
        return values

    def _record(self, name: str, args: Any, options: Any, out: Any) -> None:
        """Count the kernels of an operation and of its backward pass, which has the same dtype."""
        found = list(tensors(args, options, out))
        if not found:
            return
        first = next((x for x in [*floats(args, options), *found] if x.dtype != paddle.bool), found[0])
        names = {name.rstrip("_")}
        if name == "flash_attn" and not out.stop_gradient:
            names.add("flash_attn_grad")
        elif paddle.is_grad_enabled() and not name.endswith("_"):
            names |= {gradient_name(x) for x in tensors(out) if not x.stop_gradient and x.grad_fn is not None}
        for kernel in names:
            self.kernels[KERNELS.get(kernel, kernel), str(first.dtype).removeprefix("paddle.")] += 1
        if name in ("flash_attn", "softmax"):
            self.attention["flash" if name == "flash_attn" else "plain"] += 1

    def _operator(self, name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def run(tensor: Tensor, *others: Any) -> Any:
            if name == "__getitem__":  # the index is no input of the operation
                return self._call("slice", lambda x: original(x, *others), tensor)
            scales = name in SCALES and not isinstance(others[0], Tensor)
            return self._call("scale" if scales else OPERATORS[name], original, tensor, *others)

        return run

    @staticmethod
    def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention of [B, N, H, D/H], as the flash kernel does."""
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
        weights = F.softmax(paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True))
        return paddle.matmul(weights, v).transpose([0, 2, 1, 3])

    @contextlib.contextmanager
    def _auto_cast(self, enable: bool = True, **_options: Any) -> Iterator[None]:
        outer, self._autocasts = self._autocasts, enable
        try:
            yield
        finally:
            self._autocasts = outer


def on_gpu(patch: pytest.MonkeyPatch, dtype: str) -> None:
    """Show tensors on an A100 to the package, but not to Paddle, and make the package compute with `dtype`.

    Only the networks see the device, so batches are loaded as on a CPU.
    """
    place, device = Tensor.place, paddle.get_device
    patch.setattr(Tensor, "place", property(lambda x: GPUPlace() if by_package() else place.__get__(x)))
    patch.setattr(paddle, "get_device", lambda: "gpu:0" if by_package("plsc_mae.models") else device())
    patch.setattr(paddle.device.cuda, "get_device_capability", lambda: CAPABILITY)
    for module in (setup, classify):
        patch.setattr(module, "choose_precision", lambda *_: choose_precision(dtype != "float32", dtype, True))


class GPUPlace:
    """The place of a tensor on a GPU."""

    def is_gpu_place(self) -> bool:
        """Return True."""
        return True

    def is_cpu_place(self) -> bool:
        """Return False."""
        return False


def by_package(name: str = "plsc_mae") -> bool:
    """Return True if the caller of the caller belongs to the package `name`."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith(name)


def tensors(*values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())


def floats(*values: Any) -> Iterator[Tensor]:
    """Yield the tensors of 16 and 32 bits among `tensors`."""
    return (x for x in tensors(*values) if x.dtype in FLOATS)


def gradient_name(x: Tensor) -> str:
    """Return the name of the kernel that computes the gradient of a result, such as matmul_grad."""
    words = re.sub(r"GradNode(Final)?$", "", x.grad_fn.name())
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower() + "_grad"


def caller() -> str:
    """Return the innermost line of the package that is being run."""
    frame = sys._getframe(2)
    while frame.f_back and "plsc_mae/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.split('plsc_mae/')[-1]}:{frame.f_lineno}"
