"""AdamW and the learning-rate schedules in float64, from their definitions."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from plsc_mae.parity.oracle.layers import Array


@dataclass
class AdamW:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019), in PyTorch's order: decay, then the update.

    One-dimensional parameters and biases are not decayed.
    """

    parameters: dict[str, Array]  # float64 arrays by name; `step` replaces them
    undecayed: Collection[str] = ()  # names of further parameters without weight decay
    betas: tuple[float, float] = (0.9, 0.95)  # decay rates of the first and second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.05  # coefficient of weight decay
    updates: int = 0  # number of updates so far
    first: dict[str, Array] = field(default_factory=dict)  # first moments (decaying means of the gradients), by name
    # second moments (decaying means of the squared gradients), by name
    second: dict[str, Array] = field(default_factory=dict)

    def step(self, gradients: dict[str, Array], lr: float) -> None:
        """Update the parameters named in `gradients` with learning rate `lr`."""
        self.updates += 1
        beta1, beta2 = self.betas
        for name, g in gradients.items():
            p = self.parameters[name]
            m = beta1 * self.first.get(name, np.zeros_like(p)) + (1 - beta1) * g
            v = beta2 * self.second.get(name, np.zeros_like(p)) + (1 - beta2) * g * g
            undecayed = p.ndim == 1 or name.endswith(".bias") or name in self.undecayed
            decay = 0.0 if undecayed else self.weight_decay
            unbiased = m / (1 - beta1**self.updates), v / (1 - beta2**self.updates)
            self.parameters[name] = p - lr * (decay * p + unbiased[0] / (np.sqrt(unbiased[1]) + self.eps))
            self.first[name], self.second[name] = m, v


def rate_by_epochs(update: int, *, peak: float, updates: int, warmup: int, floor: float) -> float:
    """Return the learning rate of an update: linear warm-up from 0, then half a cosine down to `floor`.

    Source: facebookresearch/mae util/lr_sched.py, which counts in fractional epochs. Parity runs have one update per
    epoch.
    """
    if update < warmup:
        return peak * update / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (updates - warmup)))


def rate_by_updates(update: int, *, peak: float, updates: int, warmup: int, floor: float) -> float:
    """Return the learning rate of `update`, counted from 0, by the schedule of Atten4Vis/CAE.

    A linear warm-up from 0 is followed by half a cosine. The last update of the warm-up and the first of the cosine
    both have the peak rate; a warm-up of a single update has rate 0.
    """
    ramp = np.linspace(0.0, peak, warmup)
    rest = updates - warmup
    cosine = [floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return float([*ramp, *cosine][update])
