"""Observers of the network between epochs: pictures and evaluation."""

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
        metrics: values by their names in the logs.
        pictures: pictures for VisualDL by label; empty outside the main process.
    """

    metrics: Mapping[str, float] = MappingProxyType({})
    pictures: Pictures = MappingProxyType({})  # type: ignore[assignment]


class Observer(Protocol):
    """Examination of the network between epochs, such as an evaluation; all processes must call it.

    Attributes:
        every: number of epochs from one call to the next; after the last epoch there is always a call.
    """

    every: int

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Examine the network; all processes must call.

        Args:
            stop: stop requests to check meanwhile; None for none.

        Raises:
            Stopped: a stop was requested meanwhile, so all processes have abandoned the examination.
        """
        ...


class PicturePanel:
    """Observer that draws the network's output for a fixed batch.

    Args:
        task: task that draws the pictures.
        panel: the batch in the main process, None in the others.
        every: number of epochs from one call to the next.
        world: processes of the run.
    """

    def __init__(self, task: Task, panel: Batch | None, every: int, world: World) -> None:
        self.task, self.panel, self.every, self.world = task, panel, every, world

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Draw in the main process while the others wait; all processes must call."""
        self.task.eval()
        pictures = {} if self.panel is None else self.task.pictures(self.panel)
        self.world.barrier()
        return Observation(pictures=pictures)


class Evaluation:
    """Observer that returns the mean scores of a task over a data set, whatever the number of processes.

    Args:
        task: task that returns the scores of each image.
        loader: yields every image once: all of them in every process or, if `shared`, a part in each process.
        world: processes of the run.
        shared: whether `loader` yields only this process's part of the images.
        precision: precision of the forward passes.
        prefix: prefix of the scores' names in the logs.
        weights: returns a context manager that replaces the weights, e.g. by their moving average.
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
        """Score every image and return the mean scores; all processes must call."""
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
            self.world.data.broadcast(totals, 0)  # other processes may have rounded differently
        self.world.pipeline.broadcast(totals, 0)  # from the last stage, which is member 0 and computes the scores
        *sums, count = totals.tolist()
        return Observation({self.prefix + name: value / count for name, value in zip(names, sums, strict=True)})
