"""Classification task of one pipeline stage.

B batch, N tokens, D width, K classes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.methods.base import Autocast, Batch, PassContext, StepOutput, Task
from plsc_mae.methods.classify import ClassifyTask
from plsc_mae.optim import ParamGroup
from plsc_mae.parallel.world import World
from plsc_mae.pipeline.schedule import Line, Schedule, pass_forward
from plsc_mae.weights.reader import Checkpoint

MICRO_BATCHES_PER_STAGE = 2


class PipelinedTask(Task):
    """Task of one pipeline stage of a classifier.

    The first stage reads and prepares the images and broadcasts the targets; the last stage computes loss and scores.
    If the blocks are frozen, the head gets the whole batch at once, because the batch normalization of probes needs it.

    Args:
        task: task whose network `keep_stage` has reduced to this stage.
        world: processes of the run.
        micro_batches: number of micro-batches per batch, at most its images; None for two per stage.
        frozen: whether all trainable parameters come after the last block.
    """

    def __init__(self, task: ClassifyTask, world: World, micro_batches: int | None, *, frozen: bool) -> None:
        super().__init__()
        self.task, self.model, self.world, self.line = task, task.model, world, Line.of(world)
        self.parts = micro_batches or MICRO_BATCHES_PER_STAGE * world.pipeline.size
        self.frozen = frozen
        self.score_names, self.constant_scores = task.score_names, task.constant_scores
        encoder = task.model.encoder
        self.token_shape = [encoder.num_patches + encoder.num_prefix_tokens, encoder.embed_dim]

    @paddle.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with "target" in every stage and "image" in the first; all stages must call."""
        if self.line.is_first:
            batch = self.task.prepare(batch)
        return {**batch, "target": self._broadcast_target(batch.get("target"), len(next(iter(batch.values()))))}

    def forward(self, batch: Batch) -> StepOutput:
        """Raise TypeError: a stage cannot compute the loss alone."""
        raise TypeError("a pipeline stage has no forward pass of its own; call forward_backward")

    def forward_backward(self, batch: Batch, context: PassContext) -> StepOutput:
        """Run the forward and backward passes of a batch; all stages must call.

        Returns:
            The mean loss of the batch and its logs in the last stage; zero without logs in the others.
        """
        run = self._train_head if self.frozen else self._train_stages
        return run(batch, context.loss_factor, context.autocast)

    def _train_stages(self, batch: Batch, factor: float, autocast: Autocast) -> StepOutput:
        bounds, losses = self._bounds(batch), []

        def stage(i: int, x: Tensor | None) -> Tensor:
            """Run micro-batch i and return this stage's output, in the last stage the weighted loss."""
            part = {name: value[bounds[i] : bounds[i + 1]] for name, value in batch.items()}
            with autocast():
                y = self._advance(part, x)
                if not self.line.is_last:
                    return y
                loss = self.task.loss(self.model.finish(y), part["target"]).loss
            share = (bounds[i + 1] - bounds[i]) / bounds[-1]
            losses.append(loss.detach() * share)
            return loss * (share * factor)

        Schedule(self.line, self._shapes(bounds), stage).run()
        if not self.line.is_last:
            return StepOutput(paddle.zeros([]), {})
        loss = paddle.add_n(losses)
        return StepOutput(loss, {"loss": loss})

    def _train_head(self, batch: Batch, factor: float, autocast: Autocast) -> StepOutput:
        tokens = self._encode(batch, autocast)
        if tokens is None:
            return StepOutput(paddle.zeros([]), {})
        with autocast():
            out = self.task.loss(self.model.finish(tokens), batch["target"])
        (out.loss * factor).backward()
        return out

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Return the classification task's scores in the last stage, zeros in the others; all stages must call."""
        prepared = self.prepare(batch)
        tokens = self._encode(prepared, contextlib.nullcontext)
        if tokens is None:
            zeros = paddle.zeros([len(prepared["target"])])
            return dict.fromkeys(self.score_names, zeros)
        return self.task.scores_of(self.model.finish(tokens), prepared["target"])

    @property
    def gathers_outputs(self) -> bool:
        """True if the classification task gathers outputs."""
        return self.task.gathers_outputs

    def metrics(self, outputs: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return the classification task's metrics."""
        return self.task.metrics(outputs, labels)

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Return the parameter groups of this stage."""
        return self.task.param_groups(weight_decay)

    def after_step(self) -> None:
        """Call the classification task's `after_step`."""
        self.task.after_step()

    def extra_state(self) -> dict[str, Any]:
        """Return the classification task's extra state."""
        return self.task.extra_state()

    def load_extra_state(self, stored: Checkpoint) -> None:
        """Restore the classification task's extra state, see `ClassifyTask.load_extra_state`."""
        self.task.load_extra_state(stored)

    @paddle.no_grad()
    def _encode(self, batch: Batch, autocast: Autocast) -> Tensor | None:
        """Return the last block's tokens [B, N, D] in the last stage, None in the others; all stages must call."""
        bounds = self._bounds(batch)

        def stage(i: int, x: Tensor | None) -> Tensor:
            with autocast():
                return self._advance({name: value[bounds[i] : bounds[i + 1]] for name, value in batch.items()}, x)

        parts = pass_forward(self.line, self._shapes(bounds), stage)
        return paddle.concat(parts) if parts else None

    def _advance(self, part: Batch, x: Tensor | None) -> Tensor:
        encoder = self.model.encoder
        return encoder.transform(encoder.embed(part["image"]) if x is None else x)

    def _bounds(self, batch: Batch) -> list[int]:
        """Return the boundaries of the micro-batches in a batch, from 0 to B."""
        count = len(batch["target"])
        sizes = [len(part) for part in np.array_split(np.arange(count), min(self.parts, count))]
        return [0, *np.cumsum(sizes).tolist()]

    def _shapes(self, bounds: Sequence[int]) -> list[list[int]]:
        return [[stop - start, *self.token_shape] for start, stop in itertools.pairwise(bounds)]

    def _broadcast_target(self, target: Tensor | None, count: int) -> Tensor:
        """Return the first stage's targets in all stages.

        Targets are class numbers [B], or float [B, K] for other labels and in training with mixup. Stages other than
        the first pass None as `target` and allocate a buffer for `count` images. All stages must call.
        """
        dense = self.task.kind.dense or (self.task.mixup is not None and self.training)
        if target is None:
            target = paddle.empty(
                [count, self.model.num_classes] if dense else [count], "float32" if dense else "int64"
            )
        return self.world.pipeline.broadcast(target, self.world.pipeline.size - 1)
