"""The training runs with a published speed, prepared for a few updates on random images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import paddle

from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.data.random_images import random_batch
from plsc_mae.methods import load_methods
from plsc_mae.methods.base import Batch, Task
from plsc_mae.methods.contract import Method, PublishedSpeed
from plsc_mae.optim import Rates
from plsc_mae.parallel.world import World
from plsc_mae.train.setup import build_stepper, share_network
from plsc_mae.train.step import Stepper

LEARNING_RATE = 1e-4  # small enough that no network diverges within the updates of a check


class PublishedRun(NamedTuple):
    """A method with the published speed of one of its runs."""

    method: Method[PretrainConfig]
    speed: PublishedSpeed

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.config_class.method


class Prepared(NamedTuple):
    """A task on the device with a batch of random images."""

    config: PretrainConfig
    task: Task
    batch: Batch

    def stepper(self, config: PretrainConfig, world: World) -> Stepper:
        """Return a stepper of the task for `config`, which may have another precision, at the rate LEARNING_RATE."""
        stepper = build_stepper(self.task, config, world)
        stepper.set_rates(Rates(LEARNING_RATE, config.weight_decay))
        return stepper


def published_runs() -> Iterator[PublishedRun]:
    """Yield the run of every method that has a published speed."""
    for method in load_methods():
        if method.published_speed is not None:
            yield PublishedRun(method, method.published_speed)


def run_config(run: PublishedRun, *, gpu: bool, **changes: Any) -> PretrainConfig:
    """Return the options of a published run with `changes`; without `gpu`, those of a small network on the CPU."""
    small = {} if gpu else run.speed.small
    options = {**run.speed.options, **small, "device": "gpu" if gpu else "cpu", **changes}
    return cast(PretrainConfig, from_mapping(options, PRETRAIN, run.speed.recipe))


def prepare(run: PublishedRun, config: PretrainConfig, world: World) -> Prepared:
    """Build the task of a run and a batch of random images; equal arguments give equal weights and images."""
    paddle.seed(config.seed)
    task = run.method.build_task(config)
    share_network(task.model, config, world)
    task.train()
    return Prepared(config, task, random_batch(run.method.train_transform(config), config.batch_size, config.seed))
