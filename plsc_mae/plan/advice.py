"""The least change that makes a run fit into its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from plsc_mae.config import TrainingConfig
from plsc_mae.errors import ConfigError
from plsc_mae.plan.estimate import Estimate, Layout, estimate
from plsc_mae.plan.sketch import Sketch

TENSOR_WAYS = (2, 4, 8)
Changes = dict[str, Any]


class Remedy(NamedTuple):
    """Options to change, all of them together, and what the step costs then."""

    changes: Changes
    estimate: Estimate


def remedy(sketch: Sketch, config: TrainingConfig, devices: int, limit: float, *, flash: bool = True) -> Remedy | None:
    """Find the first change of `candidates` by which a step needs no more than `limit` bytes; None if there is none."""
    for changes in candidates(config, devices):
        changed = dataclasses.replace(config, **changes)
        try:
            found = estimate(sketch, changed, devices, flash=flash)
        except ConfigError:  # heads or devices that do not divide
            continue
        if found.usage.total <= limit:
            return Remedy(changes, found)
    return None


def candidates(config: TrainingConfig, devices: int) -> Iterator[Changes]:
    """Changes that keep the images of an update, the least first.

    Recompute costs a forward pass, sharding some communication, smaller batches efficiency; tensor parallelism costs
    much communication, and later stages of sharding more of it.
    """
    again: list[Changes] = [] if config.recompute else [{"recompute": True}]
    shared: list[Changes] = []
    if config.sharding_stage == 0 and Layout.of(config, devices).data > 1:
        shared = [{"sharding_stage": 1}]
    smaller = list(_smaller_batches(config))
    both = [{**a, **b} for a in again for b in shared]
    yield from (*again, *shared, *smaller, *both)
    yield from ({**a, **b} for a in (again or [{}]) for b in smaller)
    together: Changes = {name: value for change in (*again, *shared) for name, value in change.items()}
    yield from ({**together, **b} for b in smaller)
    least = smaller[-1] if smaller else {"accum_iter": config.accum_iter}
    for ways in TENSOR_WAYS:
        wider = {"tensor_parallel": config.tensor_parallel * ways}
        yield {**wider, "accum_iter": config.accum_iter * ways}
        yield {**together, **wider, "accum_iter": config.accum_iter * ways}
        yield {**together, **least, **wider, "accum_iter": least["accum_iter"] * ways}
    yield from ({**together, **least, "sharding_stage": stage} for stage in (2, 3) if stage > config.sharding_stage)


def _smaller_batches(config: TrainingConfig) -> Iterator[Changes]:
    """Halves of the batch in twice as many iterations, as long as they are whole."""
    batch, iterations = config.batch_size, config.accum_iter
    while batch % 2 == 0:
        batch, iterations = batch // 2, iterations * 2
        yield {"batch_size": batch, "accum_iter": iterations}
