"""Learning rates as pure functions of how far the run has come."""

from __future__ import annotations

import math
from typing import NamedTuple


class Rates(NamedTuple):
    """What a schedule sets before an update."""

    lr: float
    weight_decay: float


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


def cosine_at(update: int, *, base: float, final: float, updates: int, warmup_updates: int = 0) -> float:
    """Linear warm-up from 0, then half a cosine to `final`, by updates (Atten4Vis/CAE furnace/utils.py).

    The warm-up ends one update early: its last value and the first of the cosine are both `base`.

    Args:
        update: number of the update, from 0.
        base: peak value.
        final: value that the cosine would reach one update after the last.
        updates: length of the run.
        warmup_updates: length of the warm-up.
    """
    if update < warmup_updates:
        return base * update / max(warmup_updates - 1, 1)
    progress = (update - warmup_updates) / (updates - warmup_updates)
    return final + 0.5 * (base - final) * (1.0 + math.cos(math.pi * progress))
