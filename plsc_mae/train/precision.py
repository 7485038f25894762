"""Mixed precision: data types of forward passes and weights, and the loss scale of float16."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn

from plsc_mae.errors import ConfigError, flag, remedies
from plsc_mae.parallel.gpu import amp_types, current_capability, unsupported_type

INITIAL_LOSS_SCALE = 2.0**16
SMALLEST_LOSS_SCALE = 1.0  # gradients that overflow at scale 1 overflow without scaling, too


class Precision(NamedTuple):
    """Numerical precision of a run."""

    dtype: str | None  # 16-bit type of mixed precision; None for float32
    note: str  # description for the log
    level: str = "O1"  # "O1" casts the inputs of suitable kernels; "O2" also keeps most weights in 16 bits
    initial_loss_scale: float | None = None  # first value of the dynamic loss scale; None disables loss scaling


FLOAT32 = Precision(None, "float32")


def choose_precision(amp: bool, amp_dtype: str, is_gpu: bool, level: str = "O1") -> Precision:
    """Return the precision that the options select; on CPU it is float32, because Paddle has no mixed precision there.

    Args:
        amp: whether to use mixed precision.
        amp_dtype: "float16", "bfloat16", or "auto": bfloat16 if the GPU supports it, else float16, else float32.
        is_gpu: whether the run uses a GPU.
        level: "O1" or "O2", see `Precision`.

    Raises:
        ConfigError: the GPU does not support `amp_dtype`, so that Paddle would compute in float32.
    """
    if not is_gpu:
        return Precision(
            None, "float32" + (" (Paddle has no mixed precision on CPU, --amp acts on GPU)" if amp else "")
        )
    if not amp:
        return Precision(None, "float32 (--no_amp)")
    supported = amp_types(current_capability())
    if amp_dtype == "auto" and not supported:
        return Precision(None, f"float32 ({unsupported_type('float16')})")
    dtype = supported[0] if amp_dtype == "auto" else amp_dtype
    if dtype not in supported:
        advice = remedies(*(f"--amp_dtype {name}" for name in supported), "--no_amp")
        raise ConfigError(f"{flag('amp_dtype')} {dtype}: {unsupported_type(dtype)}; use {advice}")
    if dtype == "float16":
        return Precision(dtype, f"mixed precision {level}, float16, dynamic loss scale", level, INITIAL_LOSS_SCALE)
    return Precision(dtype, f"mixed precision {level}, {dtype}", level)


def autocast(precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Return the context manager in which a forward pass runs at `precision`."""
    if precision.dtype is None:
        return contextlib.nullcontext()
    return paddle.amp.auto_cast(level=precision.level, dtype=precision.dtype)


def lower_weights(task: nn.Layer, optimizer: paddle.optimizer.Optimizer, precision: Precision) -> None:
    """Convert most weights of `task` to 16 bits if the level is "O2"; `optimizer` then keeps float32 copies of them."""
    if precision.dtype is not None and precision.level == "O2":
        paddle.amp.decorate(task, optimizer, level="O2", dtype=precision.dtype, master_weight=True)


class LossScale:
    """Dynamic loss scale, at least 1: halved after an overflow, doubled after a number of updates without one.

    Only applied updates are counted; updates discarded for another reason change nothing.

    Args:
        initial: first scale; None disables scaling.
        incr_every_n_steps: number of updates without an overflow after which the scale doubles.

    Attributes:
        enabled: whether losses are scaled.
        value: current scale; 1 when disabled.
    """

    def __init__(self, initial: float | None = INITIAL_LOSS_SCALE, *, incr_every_n_steps: int = 2000) -> None:
        self.enabled = initial is not None
        self.value = 1.0 if initial is None else initial
        self.incr_ratio, self.decr_ratio = 2.0, 0.5
        self.incr_every_n_steps = incr_every_n_steps
        self.incr_count = 0

    @property
    def at_floor(self) -> bool:
        """True if the scale cannot be halved any further."""
        return self.value <= SMALLEST_LOSS_SCALE

    def update(self, *, good: bool) -> None:
        """Adapt the scale after an update; `good` is True if it was applied, False if its gradients overflowed."""
        if not self.enabled:
            return
        if not good:
            self.value = max(self.value * self.decr_ratio, SMALLEST_LOSS_SCALE)
            self.incr_count = 0
            return
        self.incr_count += 1
        if self.incr_count == self.incr_every_n_steps:
            self.value *= self.incr_ratio
            self.incr_count = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the fields of Paddle's GradScaler; {} when disabled."""
        if not self.enabled:
            return {}
        return {
            "scale": np.asarray([self.value], np.float32),
            "incr_ratio": self.incr_ratio,
            "decr_ratio": self.decr_ratio,
            "incr_every_n_steps": self.incr_every_n_steps,
            "decr_every_n_nan_or_inf": 1,
            "incr_count": self.incr_count,
            "decr_count": 0,
            "use_dynamic_loss_scaling": True,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that is not empty, of this class or of Paddle's GradScaler; do nothing when disabled."""
        if not self.enabled:
            return
        self.value = float(np.asarray(state["scale"]).reshape(-1)[0])
        self.incr_ratio, self.decr_ratio = float(state["incr_ratio"]), float(state["decr_ratio"])
        self.incr_every_n_steps, self.incr_count = int(state["incr_every_n_steps"]), int(state["incr_count"])
