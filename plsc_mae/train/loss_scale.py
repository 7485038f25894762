"""The dynamic loss scale of float16: gradients too small for it are lifted over its smallest number, and put back.

The rules, defaults and stored fields are those of paddle.amp.GradScaler (Micikevicius et al. 2018). Paddle's works on
GPU only, and decides by the gradients of one process; here the caller decides, for all processes that share a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from paddle import Tensor

INITIAL = 2.0**16
FLOOR = 1.0  # gradients that overflow without being lifted are too large by themselves


class LossScale:
    """Doubles after `incr_every_n_steps` good updates in a row, halves after a bad one, down to FLOOR.

    Args:
        enable: whether losses are scaled at all.
        initial: scale to begin with.
        incr_every_n_steps: good updates before it doubles.

    Attributes:
        value: what losses are multiplied with.
    """

    def __init__(self, enable: bool, *, initial: float = INITIAL, incr_every_n_steps: int = 2000) -> None:
        self.enable = enable
        self.value = initial if enable else 1.0
        self.incr_ratio, self.decr_ratio = 2.0, 0.5
        self.incr_every_n_steps, self.incr_count = incr_every_n_steps, 0

    def is_enable(self) -> bool:
        """Whether losses are scaled."""
        return self.enable

    @property
    def at_floor(self) -> bool:
        """Whether halving is no remedy any more."""
        return self.value <= FLOOR

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply a loss before its backward pass."""
        return loss * self.value if self.enable else loss

    def update(self, *, good: bool) -> None:
        """Follow an update that was made, or not because gradients were not finite."""
        if not self.enable:
            return
        if not good:
            self.value, self.incr_count = max(self.value * self.decr_ratio, FLOOR), 0
            return
        self.incr_count += 1
        if self.incr_count == self.incr_every_n_steps:
            self.value, self.incr_count = self.value * self.incr_ratio, 0

    def state_dict(self) -> dict[str, Any]:
        """The fields of Paddle's GradScaler; nothing where losses are not scaled."""
        if not self.enable:
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
        """Put back what `state_dict` gave, here or in Paddle."""
        if not self.enable:
            return
        self.value = float(np.asarray(state["scale"]).reshape(-1)[0])
        self.incr_ratio, self.decr_ratio = float(state["incr_ratio"]), float(state["decr_ratio"])
        self.incr_every_n_steps, self.incr_count = int(state["incr_every_n_steps"]), int(state["incr_count"])
