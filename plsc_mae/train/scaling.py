"""Effective batch of a run, and the learning rate that is scaled by it (Goyal et al. 2017)."""

from __future__ import annotations

from plsc_mae.config import TrainingConfig
from plsc_mae.optim import scaled_lr
from plsc_mae.parallel.world import World

HIGH_RATE = 0.01  # from which on a rate is raised in smaller steps


def higher_rate(rate: float) -> float:
    """Return the next rate to try if a run learns nothing: ten times a low one, three times others.

    The published rates are far below what small networks on few images need, but a high rate soon makes the loss jump.
    """
    return float(f"{rate * (10 if rate < HIGH_RATE else 3):.6g}")


def images_per_update(config: TrainingConfig, world: World) -> int:
    """Return the number of images of a whole accumulation group in all processes."""
    return config.batch_size * world.size * config.accum_iter


def scales_with_batch(config: TrainingConfig) -> bool:
    """Return whether the learning rate is proportional to the number of images per update."""
    return config.lr is None or config.lr_per_256


def peak_lr(config: TrainingConfig, effective_batch: int) -> float:
    """Return the absolute peak learning rate of a run.

    An absolute --lr is returned unchanged. --blr, or the --lr of a method whose rate is per 256 images, is multiplied
    by `effective_batch` / 256, where `effective_batch` is the number of images per update.
    """
    if config.lr is not None and not config.lr_per_256:
        return config.lr
    _, base = config.given_rate
    return scaled_lr(base, effective_batch)
