"""Learning rates as pure functions of how far the run has come."""

from __future__ import annotations

import math


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
