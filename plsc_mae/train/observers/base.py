"""What looks at a network between the epochs of its training: pictures and evaluation; and what they see."""

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
from plsc_mae.train.signals import StopRequest
from plsc_mae.train.step import Precision, autocast


class Observation(NamedTuple):
    """What an observer has seen.

    Attributes:
        metrics: numbers for the logs, under the names they have there.
        pictures: for VisualDL, from the main process.
    """

    metrics: Mapping[str, float] = MappingProxyType({})
    pictures: Pictures = MappingProxyType({})  # type: ignore[assignment]


class Observer(Protocol):
    """Looks at the network between epochs; all processes call it together.

    Attributes:
        every: epochs from one look to the next; the last epoch is always looked at.
    """

    every: int

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Look, in all processes.

        Raises:
            Stopped: `stop` was asked for meanwhile, and all processes have left off.
        """
        ...


class PicturePanel:
    """Draws what the network makes of a fixed batch.

    Args:
        task: whose network.
        panel: the batch; only the main process has one.
        every: epochs from one look to the next.
        world: the processes of the run.
    """

    def __init__(self, task: Task, panel: Batch | None, every: int, world: World) -> None:
        self.task, self.panel, self.every, self.world = task, panel, every, world

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Draw in the main process; the others wait."""
        self.task.eval()
        pictures = {} if self.panel is None else self.task.pictures(self.panel)
        self.world.barrier()
        return Observation(pictures=pictures)


class Evaluation:
    """Means over a data set of what a Task scores image by image: the same for any number of processes.

    Args:
        task: scores images.
        loader: every image once, in this process or in all of them together.
        world: the processes of the run.
        shared: whether `loader` has this process's share of the images rather than all of them.
        precision: of the forward pass.
        prefix: of the names in the logs.
        weights: puts other weights into the network while it is evaluated, as an average of them.
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
        """Score every image and take the means, in one reduction."""
        self.task.eval()
        names = self.task.score_names
        totals = paddle.zeros([len(names) + 1], dtype="float64")
        self.loader.sampler.set_position(0)
        with self.weights():
            for batch in self.loader:
                if stop is not None and stop.heard():
                    break
                with autocast(self.precision):
                    scores = self.task.scores(batch)
                columns = [scores[name].astype("float64") for name in names]
                totals += paddle.stack([*(column.sum() for column in columns), paddle.ones_like(columns[0]).sum()])
        self.world.barrier()  # the others may need, and one that leaves off waits, longer than a reduction would
        if stop is not None:
            stop.check()
        if self.shared:
            totals = self.world.sum(totals)
        else:
            self.world.data.broadcast(totals, 0)  # processes of other machines may have rounded otherwise
        self.world.pipeline.broadcast(totals, 0)  # the last stage, which comes first, knows scores
        *sums, count = totals.tolist()
        return Observation({self.prefix + name: value / count for name, value in zip(names, sums, strict=True)})
