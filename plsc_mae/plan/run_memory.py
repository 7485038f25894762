"""Estimate of the memory of a run that is about to start, from its own network."""

from __future__ import annotations

import dataclasses

from plsc_mae.config import LinprobeConfig, TrainingConfig
from plsc_mae.methods.base import Task
from plsc_mae.parallel.gpu import AMPERE, current_capability
from plsc_mae.parallel.world import World
from plsc_mae.plan.estimate import estimate
from plsc_mae.plan.sketch import Sketch
from plsc_mae.train.precision import choose_precision


def planned_memory(task: Task, config: TrainingConfig, world: World) -> int | None:
    """Return the bytes of tensors at the peak of an update, as `plsc-mae plan` estimates them for one process.

    There is no estimate (None) for a task without a memory outline, for cached features, and for tensor or pipeline
    parallelism, in which `task` has only a part of the network.

    Raises:
        ConfigError: the run does not support its precision or its sharding stage.
    """
    is_outlined = type(task).memory_outline is not Task.memory_outline
    is_cached = isinstance(config, LinprobeConfig) and config.cache_features
    if not is_outlined or is_cached or world.tensor.size * world.pipeline.size > 1:
        return None
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
    settled = dataclasses.replace(
        config, device="gpu" if world.is_gpu else "cpu", amp=config.amp and precision.dtype is not None
    )
    capability = current_capability() if world.is_gpu else AMPERE
    whole = Sketch(task, forward_macs=0, training_macs=0, stages=(task,))
    return estimate(whole, settled, world.processes, capability=capability).usage.total
