"""End of a run and checkpoints that are due, determined from its options and its position."""

from __future__ import annotations

from plsc_mae.config import TrainingConfig
from plsc_mae.train.checkpoint.state import BEST, LATEST, Progress


def reached_last_step(config: TrainingConfig, at: Progress) -> bool:
    """Return whether the run has done the number of updates that --max_train_step sets."""
    return config.max_train_step is not None and at.step >= config.max_train_step


def is_over(config: TrainingConfig, at: Progress) -> bool:
    """Return whether the run has done all its epochs or reached --max_train_step."""
    return at.epoch >= config.epochs or reached_last_step(config, at)


def step_save_is_due(config: TrainingConfig, at: Progress) -> bool:
    """Return whether --save_ckpt_steps requires a checkpoint after the current update."""
    return config.save_ckpt_steps > 0 and at.step % config.save_ckpt_steps == 0


def due_tags(config: TrainingConfig, at: Progress) -> list[int | str]:
    """Return the tags of the checkpoints to write after an epoch; empty if none is due.

    The tags are the index of the finished epoch if its checkpoint is due, else "latest" if --save_ckpt_steps requires a
    checkpoint; and "best" if the epoch's metric is the best so far. `at` is the position after the epoch, so `at.epoch`
    is the index of the next epoch.
    """
    tags: list[int | str] = []
    if at.step and (is_over(config, at) or at.epoch % config.save_ckpt_freq == 0):
        tags.append(at.epoch - 1)
    elif at.step and step_save_is_due(config, at):
        tags.append(LATEST)
    return [*tags, BEST] if at.best_step == at.step else tags
