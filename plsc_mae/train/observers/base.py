"""Observers of a network between epochs: pictures and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import paddle

from plsc_mae.data.loader import BatchLoader
from plsc_mae.methods.base import Batch, Pictures, Task
from plsc_mae.parallel.world import World
from plsc_mae.train.precision import Precision, autocast
from plsc_mae.train.signals import StopRequest


class Observation(NamedTuple):
    """Result of an observer.

    Attributes:
        metrics: numbers by their names in the logs.
        pictures: pictures for VisualDL, in the main process.
    """

    metrics: Mapping[str, float] = MappingProxyType({})
    pictures: Pictures = MappingProxyType({})  # type: ignore[assignment]


class Observer(Protocol):
    """Examines the network between epochs; all processes call it together.

    Attributes:
        every: epochs between two calls; the last epoch is always observed.
    """

    every: int

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Examine the network, in all processes.

        Raises:
            Stopped: a stop was requested meanwhile, and all processes have given up the observation.
        """
        ...


class PicturePanel:
    """Draws the network's output for a fixed batch.

    Args:
        task: its network is observed.
        panel: the batch, in the main process only.
        every: epochs between two calls.
        world: processes of the run.
    """

    def __init__(self, task: Task, panel: Batch | None, every: int, world: World) -> None:
        self.task, self.panel, self.every, self.world = task, panel, every, world

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Draw in the main process while the others wait."""
        self.task.eval()
        pictures = {} if self.panel is None else self.task.pictures(self.panel)
        self.world.barrier()
        return Observation(pictures=pictures)


class Evaluation:
    """Means of a Task's scores over a data set, equal for any number of processes.

    Args:
        task: scores images one by one.
        loader: yields every image once, in this process or in all processes together.
        world: processes of the run.
        shared: whether `loader` yields only this process's share of the images.
        precision: of forward passes.
        prefix: prefix of the names in the logs.
        weights: context manager that replaces the weights during the evaluation, e.g. by their moving average.
    """

    every = 1

    def __init__(
        self,
        task: Task,
        loader: BatchLoader,
        world: World,
        *,
        shared: bool,
        precision: Precision,
        prefix: str = "test_",
        weights: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.task, self.loader, self.world, self.shared = task, loader, world, shared
        self.precision, self.prefix, self.weights = precision, prefix, weights

    @paddle.no_grad()
    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Score every image and return the means, with one reduction."""
        self.task.eval()
        names = self.task.score_names
        totals = paddle.zeros([len(names) + 1], dtype="float64")
        self.loader.sampler.set_position(0)
        with self.weights():
            for batch in self.loader:
                if stop is not None and stop.is_requested():
                    break
                with autocast(self.precision):
                    scores = self.task.scores(batch)
                columns = [scores[name].astype("float64") for name in names]
                totals += paddle.stack([*(column.sum() for column in columns), paddle.ones_like(columns[0]).sum()])
        self.world.barrier()  # waiting for slower processes can exceed the timeout of a reduction
        if stop is not None:
            stop.check()
        if self.shared:
            totals = self.world.sum(totals)
        else:
            self.world.data.broadcast(totals, 0)  # other machines may round differently
        self.world.pipeline.broadcast(totals, 0)  # from the last stage, which is member 0 and computes the scores
        *sums, count = totals.tolist()
        return Observation({self.prefix + name: value / count for name, value in zip(names, sums, strict=True)})
