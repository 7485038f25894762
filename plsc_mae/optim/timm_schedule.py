"""Learning rates of timm's schedulers as microsoft/SimMIM runs them, iteration by iteration.

The original sets the warm-up's first rate when it builds the scheduler and then steps it after every update, with the
number of that update. Update k, from 0, therefore runs at the rate of iteration max(k - 1, 0): the first two updates
share the first rate, and all others are one iteration late.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

from plsc_mae.optim.schedule import Rates, Schedule


def timm_multistep(
    *, lr: float, warmup_lr: float, warmup_updates: int, milestones: Sequence[int], factor: float, weight_decay: float
) -> Schedule:
    """Return a schedule with linear warm-up, then a constant rate that every milestone multiplies by a factor.

    Args:
        lr: rate after the warm-up.
        warmup_lr: rate at the start of the warm-up.
        warmup_updates: length of the warm-up.
        milestones: iterations, in rising order, from which on the rate is multiplied once more.
        factor: of every milestone.
        weight_decay: constant.
    """

    def after_warmup(iteration: int) -> float:
        return lr * factor ** bisect.bisect_right(milestones, iteration)

    return _late_by_one(after_warmup, lr, warmup_lr, warmup_updates, weight_decay)


def timm_cosine(
    *, lr: float, warmup_lr: float, min_lr: float, updates: int, warmup_updates: int, weight_decay: float
) -> Schedule:
    """Return a schedule with linear warm-up, then the rest of a half cosine that spans the whole run.

    The cosine starts with the run and not at the end of the warm-up, so the rate drops there: after 20 of 100 epochs
    to 90 % of the peak.

    Args:
        lr: rate at the end of the warm-up, and the start of the cosine.
        warmup_lr: rate at the start of the warm-up.
        min_lr: rate at the end of the cosine.
        updates: length of the run.
        warmup_updates: length of the warm-up.
        weight_decay: constant.
    """

    def after_warmup(iteration: int) -> float:
        return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * iteration / updates))

    return _late_by_one(after_warmup, lr, warmup_lr, warmup_updates, weight_decay)


def _late_by_one(
    after_warmup: Callable[[int], float], lr: float, warmup_lr: float, warmup_updates: int, weight_decay: float
) -> Schedule:
    def rates(_epoch: float, update: int) -> Rates:
        iteration = max(update - 1, 0)
        if iteration < warmup_updates:
            return Rates(warmup_lr + (lr - warmup_lr) * iteration / warmup_updates, weight_decay)
        return Rates(after_warmup(iteration), weight_decay)

    return rates
