"""Search for the cheapest change of options that makes a run fit into its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from plsc_mae.config import TrainingConfig
from plsc_mae.errors import ConfigError
from plsc_mae.parallel.gpu import AMPERE, Capability
from plsc_mae.plan.estimate import Estimate, Layout, estimate
from plsc_mae.plan.sketch import Sketch

TENSOR_WAYS = (2, 4, 8)
Changes = dict[str, Any]


class Remedy(NamedTuple):
    """Change of options with which a run fits."""

    changes: Changes  # the options to change together, {name: new value}
    estimate: Estimate  # cost of an optimizer step with them


def remedy(
    sketch: Sketch, config: TrainingConfig, devices: int, limit: float, *, capability: Capability = AMPERE
) -> Remedy | None:
    """Return the first of `candidates` with which a device needs at most `limit` bytes; None if no candidate fits.

    `capability` is the compute capability of the GPUs.
    """
    for changes in candidates(config, devices):
        try:
            found = estimate(sketch, dataclasses.replace(config, **changes), devices, capability=capability)
        except ConfigError:  # options that cannot be combined, or heads or devices that cannot be divided like this
            continue
        if found.usage.total <= limit:
            return Remedy(changes, found)
    return None


def candidates(config: TrainingConfig, devices: int) -> Iterator[Changes]:
    """Yield changes of options, {name: new value}, in the order to try; all keep the number of images per update.

    The order is: recompute (another forward pass), sharding stage 1 (some communication), smaller batches (less
    efficient), combinations of these, tensor parallelism alone and combined with them (much communication), and last
    sharding stages 2 and 3, which exist on GPU only. Changes can repeat, and some are invalid for the options, the
    network or the devices: replacing the options or estimating the run then raises ConfigError.
    """
    recompute: list[Changes] = [] if config.recompute else [{"recompute": True}]
    sharding: list[Changes] = []
    if config.sharding_stage == 0 and Layout.of(config, devices).data > 1:
        sharding = [{"sharding_stage": 1}]
    smaller = list(_smaller_batches(config))
    both = [{**a, **b} for a in recompute for b in sharding]
    yield from (*recompute, *sharding, *smaller, *both)
    yield from ({**a, **b} for a in (recompute or [{}]) for b in smaller)
    together: Changes = {name: value for change in (*recompute, *sharding) for name, value in change.items()}
    yield from ({**together, **b} for b in smaller)
    least = smaller[-1] if smaller else {"accum_iter": config.accum_iter}
    for ways in TENSOR_WAYS:
        wider = {"tensor_parallel": config.tensor_parallel * ways}
        yield {**wider, "accum_iter": config.accum_iter * ways}
        yield {**together, **wider, "accum_iter": config.accum_iter * ways}
        yield {**together, **least, **wider, "accum_iter": least["accum_iter"] * ways}
    yield from ({**together, **least, "sharding_stage": stage} for stage in (2, 3) if stage > config.sharding_stage)


def _smaller_batches(config: TrainingConfig) -> Iterator[Changes]:
    """Yield changes that halve the batch and double the iterations, once, twice, ..., as long as the batch is even."""
    batch, iterations = config.batch_size, config.accum_iter
    while batch % 2 == 0:
        batch, iterations = batch // 2, iterations * 2
        yield {"batch_size": batch, "accum_iter": iterations}
