"""Observers of the network between epochs, and the evaluation on a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.analysis.class_counts import ClassCounts, count_classes
from plsc_mae.data.evaluation import UNREADABLE, EvaluationDataset
from plsc_mae.data.loader import BatchLoader
from plsc_mae.data.transfer import INDEX, to_device
from plsc_mae.errors import DataError
from plsc_mae.methods.base import LABEL, OUTPUT, PREDICTION, Batch, Task
from plsc_mae.parallel.world import World
from plsc_mae.train.precision import Precision, autocast
from plsc_mae.train.signals import StopRequest
from plsc_mae.wording import counted


class Observation(NamedTuple):
    """Result of an observer."""

    metrics: Mapping[str, float] = MappingProxyType({})  # values by their names in the logs
    # pictures for the boards, uint8 [H, W, 3] by tag; only those of the main process are written
    pictures: Mapping[str, npt.NDArray[np.uint8]] = MappingProxyType({})
    # names of those metrics that are the same for every network, which lines on the console leave out
    constant: Collection[str] = ()


class Observer(Protocol):
    """Callable that examines the network between epochs, for example evaluates it; all processes must call it."""

    every: int  # number of epochs between two calls; the observer is always called after the last epoch
    at_start: bool  # whether it is also called before the first update; only the pictures of that call are kept

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Examine the network and return metrics and pictures; all processes must call.

        Args:
            stop: request to check during the examination; None to run to the end in any case.

        Raises:
            DataError: images cannot be read, or features are not finite.
            Stopped: a stop was requested meanwhile, and all processes have abandoned the examination.
        """
        ...


class Gathered(NamedTuple):
    """Outputs of the readable images of a data set, in its order."""

    numbers: npt.NDArray[np.int64]  # indices [n] of these images in the data set
    outputs: npt.NDArray[np.float32]  # [n, K]
    labels: npt.NDArray[Any]  # class numbers int64 [n], or float32 [n, K]


class Evaluation:
    """Observer that returns the mean scores of a task over a data set, to which every readable image contributes once.

    `EvaluationDataset` marks unreadable images.

    Args:
        task: task that returns the scores of each image.
        loader: yields every image once: all of them in every process or, if `shared`, a part in each process.
        world: processes of the run.
        shared: whether `loader` yields only this process's part of the images.
        precision: precision of the forward passes.
        prefix: prefix of the scores' names in the logs.
        weights: returns a context manager that replaces the weights, for example by their moving average.
        gather: whether to gather the outputs of all images in all processes and add `Task.metrics`; a task whose
            `gathers_outputs` is true always does.
        num_classes: number of classes K of a task that returns `PREDICTION`, to count its results per class; 0 does not
            count them, and is the only choice if outputs are gathered.
        balanced: whether to add the balanced accuracy of these results.

    Attributes:
        gathered: outputs of the last call; None unless they are gathered.
        counts: results per class of the last call; None unless they are counted.
        scored: number of images in the means of the last call.
        unreadable: number of images that were left out of the means of the last call.
    """

    every = 1
    at_start = False

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
        gather: bool = False,
        num_classes: int = 0,
        balanced: bool = False,
    ) -> None:
        self.task, self.loader, self.world, self.shared = task, loader, world, shared
        self.precision, self.prefix, self.weights = precision, prefix, weights
        self.gather = gather or task.gathers_outputs
        self.num_classes, self.balanced = 0 if self.gather else num_classes, balanced
        self.gathered: Gathered | None = None
        self.counts: ClassCounts | None = None
        self.scored = self.unreadable = 0

    @paddle.no_grad()
    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Score every image, and return the mean scores and, if outputs are gathered, the metrics.

        All processes must call.

        Raises:
            DataError: images cannot be read, see --bad_image, or none can.
            Stopped: a stop was requested meanwhile.
        """
        self.task.eval()
        names = self.task.score_names
        totals = paddle.zeros([len(names) + 2], dtype="float64")
        unreadable_here: list[int] = []
        rows: list[Any] = []
        self.loader.sampler.set_position(0)
        with self.weights():
            for batch in self.loader:
                if stop is not None and stop.is_requested():
                    break
                with autocast(self.precision):
                    scores = self.task.scores(batch)
                unreadable = self._marks(batch)
                if UNREADABLE in batch:
                    unreadable_here += batch[INDEX][batch[UNREADABLE] > 0].tolist()
                columns = [scores[name].astype("float64") for name in names]
                sums = [(column * (1 - unreadable)).sum() for column in (*columns, paddle.ones_like(columns[0]))]
                totals += paddle.stack([*sums, unreadable.sum()])
                if self.gather:
                    rows.append(self._rows(batch, scores, unreadable, OUTPUT).numpy())
                elif self.num_classes:
                    rows.append(self._rows(batch, scores, unreadable, PREDICTION))  # small, so it stays on the device
        self.world.barrier()  # waiting for slower processes can exceed the timeout of a reduction
        if stop is not None:
            stop.check()
        if self.shared:
            totals = self.world.sum(totals)
        else:
            self.world.data.broadcast(totals, 0)  # other processes may have rounded differently
        self.world.pipeline.broadcast(totals, 0)  # from the last stage, which is member 0 and computes the scores
        *sums, scored, unreadable = totals.tolist()
        self._report(int(scored), int(unreadable), unreadable_here)
        metrics = {name: value / scored for name, value in zip(names, sums, strict=True)}
        if self.gather:
            self.gathered = self._collect(rows)
            metrics |= self.task.metrics(self.gathered.outputs, self.gathered.labels)
        elif self.num_classes:
            _, predicted, labels = self._collect(rows)
            self.counts = count_classes(labels, predicted[:, 0].astype(np.int64), self.num_classes)
            if self.balanced:
                metrics["balanced_acc"] = self.counts.balanced_accuracy
        return Observation(
            {self.prefix + name: value for name, value in metrics.items()},
            constant=[self.prefix + name for name in self.task.constant_scores],
        )

    def _marks(self, batch: Batch) -> Tensor:
        """Return float64 [B], 1 for an unreadable image and 0 for others; all pipeline stages must call."""
        return self._from_first_stage(batch, UNREADABLE).astype("float64")

    def _from_first_stage(self, batch: Batch, name: str) -> Tensor:
        """Return the array `name`, int64 [B], of a batch, or zeros if the batch lacks it.

        The first pipeline stage, which reads the images, sends it to the others; all stages must call.
        """
        if name in batch:
            numbers = to_device(batch[name])
        else:
            numbers = paddle.zeros([len(next(iter(batch.values())))], "int64")
        pipeline = self.world.pipeline
        return pipeline.broadcast(numbers, pipeline.size - 1)

    def _rows(self, batch: Batch, scores: Batch, unreadable: Tensor, score: str) -> Tensor:
        """Return index, readability (1 or 0), values of a score and label of every image, float32 [B, 2 + K + L].

        The K values are those of `OUTPUT`, or the one of `PREDICTION`. Indices and class numbers are exact up to
        2 ** 24. Pipeline stages before the last have neither, so K + L is 0; all stages must call.
        """
        numbers = self._from_first_stage(batch, INDEX).astype("float32")
        parts = [numbers.unsqueeze(1), 1 - unreadable.astype("float32").unsqueeze(1)]
        if score in scores:
            columns = [scores[name].astype("float32") for name in (score, LABEL)]
            parts += [column if column.ndim == 2 else column.unsqueeze(1) for column in columns]
        return paddle.concat(parts, axis=1)

    def _collect(self, rows: list[Any]) -> Gathered:
        """Return the values of all images from the rows, arrays or tensors, of this and the other processes.

        All processes must call. `rows` becomes empty, which frees its memory.
        """
        width = int(self.world.largest([max((each.shape[1] for each in rows), default=0)])[0])
        whole = np.zeros((len(self.loader.dataset), width - 1), np.float32)
        while rows:
            each = np.asarray(rows.pop())
            whole[each[:, 0].astype(np.int64), : each.shape[1] - 1] = each[:, 1:]
        exchanged = paddle.to_tensor(whole)
        if self.shared:
            exchanged = self.world.sum(exchanged)
        else:
            self.world.data.broadcast(exchanged, 0)
        whole = self.world.pipeline.broadcast(exchanged, 0).numpy()
        numbers = np.flatnonzero(whole[:, 0])
        content = whole[numbers, 1:]
        if self.task.gathers_outputs:  # labels [n, K], like the outputs
            outputs, labels = np.split(content, 2, axis=1)
            return Gathered(numbers, outputs, labels)
        return Gathered(numbers, content[:, :-1], content[:, -1].astype(np.int64))

    def _report(self, scored: int, unreadable: int, here: Sequence[int]) -> None:
        """Store the counts, and log the unreadable images; `here` are the indices of those that this process read."""
        if not scored:
            raise DataError(
                f"the evaluation has {counted(unreadable, 'image')}, and none can be read; check --eval_data_path"
            )
        dataset = self.loader.dataset
        if isinstance(dataset, EvaluationDataset):
            dataset.log_unreadable(here)
            if self.world.is_main:
                dataset.log_number(unreadable)
        self.scored, self.unreadable = scored, unreadable
