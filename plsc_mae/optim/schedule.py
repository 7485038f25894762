"""Learning rates as pure functions of how far the run has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from plsc_mae.errors import ConfigError


class Rates(NamedTuple):
    """What a schedule sets before an update."""

    lr: float
    weight_decay: float


Schedule = Callable[[float, int], Rates]  # of the epochs, with fraction, and of the updates that are done


def scaled_lr(blr: float, effective_batch: int) -> float:
    """Scale a base rate linearly with the images per update: lr = blr * effective_batch / 256 (Goyal et al. 2017)."""
    return blr * effective_batch / 256


def lr_at(epoch: float, *, lr: float, epochs: float, warmup_epochs: float = 0.0, min_lr: float = 0.0) -> float:
    """Linear warm-up from 0, then half a cosine down to `min_lr` (facebookresearch/mae util/lr_sched.py).

    Args:
        epoch: epochs done so far, with the fraction of the current one; the very first iteration has rate 0.
        lr: peak rate, reached at the end of warm-up.
        epochs: length of the run.
        warmup_epochs: length of the warm-up.
        min_lr: rate at the end.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_at(
    update: int, *, base: float, final: float, updates: int, warmup_updates: int = 0, start: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine to `final`, by updates.

    `cosine_scheduler` of Atten4Vis/CAE furnace/utils.py and of BUPT-PRIV/MAE-priv and MAE-pytorch.

    The warm-up ends one update early: its last value and the first of the cosine are both `base`.

    Args:
        update: number of the update, from 0.
        base: peak value.
        final: value that the cosine would reach one update after the last.
        updates: length of the run.
        warmup_updates: length of the warm-up.
        start: value that the warm-up starts from; 0 in every recipe.
    """
    if update < warmup_updates:
        return start + (base - start) * update / max(warmup_updates - 1, 1)
    progress = (update - warmup_updates) / (updates - warmup_updates)
    return final + 0.5 * (base - final) * (1.0 + math.cos(math.pi * progress))


def by_epochs(*, lr: float, epochs: float, warmup_epochs: float, min_lr: float, weight_decay: float) -> Schedule:
    """Make the schedule of `lr_at`, with constant weight decay."""

    def rates(epoch: float, _update: int) -> Rates:
        return Rates(lr_at(epoch, lr=lr, epochs=epochs, warmup_epochs=warmup_epochs, min_lr=min_lr), weight_decay)

    return rates


def by_updates(
    *,
    lr: float,
    updates: int,
    warmup_updates: int,
    min_lr: float,
    weight_decay: float,
    weight_decay_end: float | None = None,
) -> Schedule:
    """Make the schedule of `cosine_at`, with a cosine of its own from `weight_decay` to its end if there is one.

    Raises:
        ConfigError: the warm-up leaves nothing of the run.
    """
    if warmup_updates >= updates:
        raise ConfigError(f"a warm-up of {warmup_updates} updates leaves nothing of the run's {updates}")
    decay_end = weight_decay if weight_decay_end is None else weight_decay_end

    def rates(_epoch: float, update: int) -> Rates:
        return Rates(
            cosine_at(update, base=lr, final=min_lr, updates=updates, warmup_updates=warmup_updates),
            cosine_at(update, base=weight_decay, final=decay_end, updates=updates),
        )

    return rates
