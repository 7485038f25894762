"""Learning rates of timm's schedulers, stepped once per iteration as in microsoft/SimMIM.

The original sets the first learning rate when it builds the scheduler, and after update k, counted from 0, it sets the
rate of iteration k. So update k uses the scheduler's rate of iteration max(k - 1, 0): the first two updates use the
first rate, and all later ones lag by one iteration.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

from plsc_mae.optim.schedule import Rates, Schedule


def timm_multistep(
    *, lr: float, warmup_lr: float, warmup_updates: int, milestones: Sequence[int], factor: float, weight_decay: float
) -> Schedule:
    """Return a schedule with linear warm-up, then a learning rate that is multiplied by `factor` at each milestone.

    Args:
        lr: learning rate that the warm-up approaches, and that is multiplied by `factor`.
        warmup_lr: learning rate at the start of the warm-up.
        warmup_updates: length of the warm-up in updates.
        milestones: iterations, in ascending order, at which the learning rate is multiplied by `factor`.
        factor: factor of the learning rate per milestone.
        weight_decay: constant weight decay.
    """

    def after_warmup(iteration: int) -> float:
        return lr * factor ** bisect.bisect_right(milestones, iteration)

    return _late_by_one(after_warmup, lr, warmup_lr, warmup_updates, weight_decay)


def timm_cosine(
    *, lr: float, warmup_lr: float, min_lr: float, updates: int, warmup_updates: int, weight_decay: float
) -> Schedule:
    """Return a schedule with linear warm-up, then the remaining part of half a cosine that spans the whole run.

    The cosine starts at the start of the run, not at the end of the warm-up. So the learning rate drops when the
    warm-up ends, for example to 90 % of `lr` if the warm-up takes 20 of 100 epochs and `min_lr` is 0.

    Args:
        lr: learning rate that the warm-up approaches, and from which the cosine starts.
        warmup_lr: learning rate at the start of the warm-up.
        min_lr: learning rate at the end of the cosine.
        updates: length of the run in updates.
        warmup_updates: length of the warm-up in updates.
        weight_decay: constant weight decay.
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
