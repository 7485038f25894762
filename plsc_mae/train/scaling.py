"""Effective batch of a run, the learning rate that is scaled by it (Goyal et al. 2017), and runs that learn nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from plsc_mae.config import ClassifyConfig, LinprobeConfig, TrainingConfig
from plsc_mae.errors import flag
from plsc_mae.optim import scaled_lr
from plsc_mae.parallel.world import World

HIGH_RATE = 0.01  # from which on a rate is raised in smaller steps
# Highest rates per 256 images that were useful on few images, see the tables of docs/few-images.md.
USEFUL_RATE, USEFUL_PROBE_RATE = 0.1, 1000.0
LEARNING_SHARE = 1 / 3  # of the epochs, after which a run should have learned something
LEARNING_EPOCHS = 3  # at the peak of the learning rate that it must have had before


def higher_rate(rate: float, limit: float = USEFUL_RATE) -> float | None:
    """Return the next rate to try if a run learns nothing; None if it would be above `limit`.

    It is ten times a low rate and three times others. The published rates are far below what small networks on few
    images need, but a high rate soon makes the loss jump.
    """
    higher = float(f"{rate * (10 if rate < HIGH_RATE else 3):.6g}")
    return higher if higher <= limit else None


def remedy_at_chance(config: ClassifyConfig, losses: Mapping[float, float] | None = None) -> str:
    """Return what a training that learns nothing should change, as in "try a higher --blr": rate, epochs or input.

    Args:
        config: options of the run.
        losses: final test_loss of a sweep by rate; None for other runs.
    """
    name, rate = config.given_rate
    images = 256 if scales_with_batch(config) else config.batch_size * config.accum_iter
    limit = (USEFUL_RATE if config.probe == "none" else USEFUL_PROBE_RATE) * images / 256
    if losses:
        return _remedy_of_sweep(losses, limit)
    if rate > limit:
        return f"a lower {name}, since {rate:g} is above the highest useful one, {limit:g}"
    higher = higher_rate(rate, limit)
    if higher is None:
        longer = "longer pre-training, " if config.finetune else ""
        return f"{longer}more epochs or a larger input, since {name} {rate:g} is near the highest useful one, {limit:g}"
    if isinstance(config, LinprobeConfig):
        return f"several rates with {flag('lr_sweep')} {limit / 100:g} {limit / 10:g} {limit:g}, or more epochs"
    return f"a higher {name}, for example {higher:g} instead of {rate:g}, or more epochs"


def _remedy_of_sweep(losses: Mapping[float, float], limit: float) -> str:
    highest = max(losses)
    if not highest_is_best(losses):
        return f"more epochs or other features, since the highest rate, {highest:g}, does not have the lowest test_loss"
    if highest >= limit:
        return f"more epochs or other features, since {highest:g} is near the highest useful rate, {limit:g}"
    higher = [f"{highest * factor:g}" for factor in (10, 100, 1000) if highest * factor <= limit] or [f"{limit:g}"]
    return f"{flag('lr_sweep')} {' '.join(higher)}, since the highest rate, {highest:g}, has the lowest test_loss"


def highest_is_best(losses: Mapping[float, float]) -> bool:
    """Return whether, of the test losses by rate, that of the highest rate is the lowest one."""
    return losses[max(losses)] <= min((loss for loss in losses.values() if not math.isnan(loss)), default=math.nan)


def epochs_to_learn(config: ClassifyConfig, updates_per_epoch: float) -> int:
    """Return the number of finished epochs before which a run that learns nothing cannot be judged.

    That is a third of the run, but at least LEARNING_EPOCHS after the warm-up; it can exceed the epochs of the run.
    """
    steps = getattr(config, "warmup_steps", -1)
    warmup = steps / updates_per_epoch if steps > 0 else config.warmup_epochs
    return math.ceil(max(LEARNING_SHARE * config.epochs, warmup + LEARNING_EPOCHS))


def is_early(config: ClassifyConfig, epochs: int, updates: int) -> bool:
    """Return whether a run that is still at chance has done too few `epochs` and `updates` to be judged."""
    return epochs < min(epochs_to_learn(config, updates / max(epochs, 1)), config.epochs)


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
