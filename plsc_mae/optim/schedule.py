"""Learning rate and weight decay as pure functions of the training progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from plsc_mae.errors import ConfigError
from plsc_mae.wording import counted


class Rates(NamedTuple):
    """Learning rate and weight decay of an update."""

    lr: float
    weight_decay: float


Schedule = Callable[[float, int], Rates]  # (completed epochs with their fraction, completed updates) -> rates


def scaled_lr(blr: float, effective_batch: int) -> float:
    """Return the learning rate blr * effective_batch / 256 (linear scaling, Goyal et al. 2017)."""
    return blr * effective_batch / 256


def lr_at(epoch: float, *, lr: float, epochs: float, warmup_epochs: float = 0.0, min_lr: float = 0.0) -> float:
    """Return the learning rate after `epoch` epochs: linear warm-up from 0, then half a cosine to `min_lr`.

    This is the schedule of facebookresearch/mae util/lr_sched.py.

    Args:
        epoch: completed epochs, including the fraction of the current one. If there is a warm-up, the rate at 0 is 0.
        lr: peak learning rate, reached at the end of the warm-up.
        epochs: length of the run in epochs.
        warmup_epochs: length of the warm-up in epochs.
        min_lr: learning rate at the end of the run.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_at(
    update: int, *, base: float, final: float, updates: int, warmup_updates: int = 0, start: float = 0.0
) -> float:
    """Return the scheduled value of an update: linear warm-up, then half a cosine to `final`.

    This is `cosine_scheduler` of Atten4Vis/CAE furnace/utils.py, BUPT-PRIV/MAE-priv and MAE-pytorch. The cosine starts
    at `base`; a warm-up of two or more updates also ends there.

    Args:
        update: zero-based index of the update.
        base: peak value.
        final: value that the cosine would reach one update after the last.
        updates: number of updates of the run.
        warmup_updates: number of updates of the warm-up.
        start: first value of the warm-up.
    """
    if update < warmup_updates:
        return start + (base - start) * update / max(warmup_updates - 1, 1)
    progress = (update - warmup_updates) / (updates - warmup_updates)
    return final + 0.5 * (base - final) * (1.0 + math.cos(math.pi * progress))


def by_epochs(*, lr: float, epochs: float, warmup_epochs: float, min_lr: float, weight_decay: float) -> Schedule:
    """Return a schedule with the learning rate of `lr_at` and a constant weight decay."""

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
    """Return a schedule whose learning rate is that of `cosine_at` with a warm-up from 0.

    The weight decay follows half a cosine from `weight_decay` to `weight_decay_end`; it is constant if that is None.

    Raises:
        ConfigError: the warm-up is not shorter than the run.
    """
    if warmup_updates >= updates:
        raise ConfigError(
            f"a warm-up of {counted(warmup_updates, 'update')} is not shorter than the run of {updates}; lower "
            "--warmup_epochs or --warmup_steps, or train for more epochs"
        )
    decay_end = weight_decay if weight_decay_end is None else weight_decay_end

    def rates(_epoch: float, update: int) -> Rates:
        return Rates(
            cosine_at(update, base=lr, final=min_lr, updates=updates, warmup_updates=warmup_updates),
            cosine_at(update, base=weight_decay, final=decay_end, updates=updates),
        )

    return rates
