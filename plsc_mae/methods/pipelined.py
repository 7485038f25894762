"""A classifier whose blocks are in several processes: what its task becomes in one of them.

B batch, N tokens, D width, K classes.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.errors import ConfigError
from plsc_mae.methods.base import Batch, StagedTask, StepOutput
from plsc_mae.methods.classify import ClassifyTask, classification_scores
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.optim import ParamGroup
from plsc_mae.parallel.pipeline import Line, RemoteLayer, Schedule, balanced_stages, pass_forward
from plsc_mae.parallel.world import World
from plsc_mae.weights.reader import Checkpoint

MICRO_BATCHES_PER_STAGE = 2
MEASURED_IMAGES = 2
SIZE = "size"  # key of a batch that is not read here: [B, 0]
Precision = Callable[[], AbstractContextManager[Any]]


def keep_stage(model: ImageClassifier, line: Line, blocks: range) -> None:
    """Drop what other stages have; what stays keeps its name.

    Raises:
        ConfigError: blocks share a relative position bias.
    """
    encoder = model.encoder
    if encoder.rel_pos_bias is not None:
        raise ConfigError("--pipeline_parallel cannot share out blocks with one relative position bias for all")
    for i in range(len(encoder.blocks)):
        if i not in blocks:
            encoder.blocks[i] = RemoteLayer()
    if not line.is_first:
        encoder.patch_embed, encoder.cls_token, encoder.pos_embed = RemoteLayer(), None, None
    if not line.is_last:
        encoder.norm, model.head, model.fc_norm = RemoteLayer(), RemoteLayer(), None
        if model.probe == "attentive":
            model.query_token, model.attentive_blocks = None, RemoteLayer()


def check_stages(stages: int, depth: int) -> None:
    """Raise ConfigError unless every stage gets a block."""
    if stages > depth:
        raise ConfigError(f"--pipeline_parallel {stages} needs as many blocks; the network has {depth}")


def check_pipeline_options(config: Any) -> None:
    """Raise ConfigError if the options include one that pipelines lack."""
    for name in ("cache_features", "lr_sweep"):
        if getattr(config, name, None):
            raise ConfigError(f"--{name} and --pipeline_parallel cannot be combined; leave one of them out")


def stages_by_cost(model: ImageClassifier, world: World) -> list[range]:
    """Divide the blocks into stages by the seconds that one takes here, and what comes before and after them.

    All processes measure at once and take the measurement of the main one.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    stages = world.pipeline.size
    check_stages(stages, len(model.encoder.blocks))
    costs = paddle.to_tensor(_block_seconds(model), dtype="float64")
    if world.processes > 1:
        world.barrier()  # reading weights may have taken one of them longer than the others wait in a broadcast
        paddle.distributed.broadcast(costs, src=0)
    return balanced_stages(costs.tolist(), stages)


def stages_by_operations(model: ImageClassifier, stages: int) -> list[range]:
    """Divide the blocks into stages by multiply-accumulates, for a plan, which cannot measure as `stages_by_cost` does.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    encoder = model.encoder
    check_stages(stages, len(encoder.blocks))
    tokens = encoder.num_patches + encoder.num_prefix_tokens
    costs = [block.macs(tokens) for block in encoder.blocks]
    whole, head = model.forward_macs()
    costs[0] += whole - sum(costs)
    costs[-1] += head
    return balanced_stages(costs, stages)


def _block_seconds(model: ImageClassifier) -> list[float]:
    """Seconds of each block forward and backward for a few images; embedding and head count with the outer ones."""
    encoder, seconds = model.encoder, []
    model.eval()
    layers = [encoder.embed, *encoder.blocks, model.finish]
    x = paddle.zeros([MEASURED_IMAGES, encoder.patch_embed.proj.weight.shape[1], *encoder.img_size])
    for layer in layers:
        for _ in range(2):  # the first time also allocates
            x = x.detach()
            started = time.perf_counter()
            y = layer(x)
            if not y.stop_gradient:
                y.sum().backward()
            y.numpy()  # waits for the device
            last = time.perf_counter() - started
        seconds.append(last)
        x = y
    for param in model.parameters():
        param.clear_gradient(False)
    first, *measured, end = seconds
    # Blocks of one shape cost the same; what they seem to differ by would cut the network anew at every start.
    blocks = [float(np.median(measured))] * len(measured)
    blocks[0] += first
    blocks[-1] += end
    return blocks


class PipelinedTask(StagedTask):
    """One stage of a classification task.

    The first stage reads and prepares images and tells the others the targets; the last one knows loss and scores. A
    probe on frozen blocks gets the whole batch at once, as its batch norm must.

    Args:
        task: whose model has been cut by `keep_stage`.
        world: the processes of the run.
        micro_batches: parts of a batch; None for two per stage.
        frozen: whether nothing before the last stage's end is trained.
    """

    def __init__(self, task: ClassifyTask, world: World, micro_batches: int | None, *, frozen: bool) -> None:
        super().__init__()
        self.task, self.model, self.world, self.line = task, task.model, world, Line.of(world)
        self.parts = micro_batches or MICRO_BATCHES_PER_STAGE * world.pipeline.size
        self.frozen, self.score_names = frozen, task.score_names
        encoder = task.model.encoder
        self.token_shape = [encoder.num_patches + encoder.num_prefix_tokens, encoder.embed_dim]

    @paddle.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Let every stage know the targets: {"target", and in the first stage "image"}."""
        if self.line.is_first:
            batch = self.task.prepare(batch)
        return {**batch, "target": self._from_first(batch.get("target"), len(next(iter(batch.values()))))}

    def run(self, batch: Batch, factor: float | Tensor, precision: Precision) -> StepOutput:
        """See `StagedTask.run`."""
        if self.frozen:
            return self._run_frozen(batch, factor, precision)
        bounds, losses = self._bounds(batch), []

        def stage(i: int, x: Tensor | None) -> Tensor:
            part = {name: value[bounds[i] : bounds[i + 1]] for name, value in batch.items()}
            with precision():
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

    def _run_frozen(self, batch: Batch, factor: float | Tensor, precision: Precision) -> StepOutput:
        tokens = self._whole_tokens(batch, precision)
        if tokens is None:
            return StepOutput(paddle.zeros([]), {})
        with precision():
            out = self.task.loss(self.model.finish(tokens), batch["target"])
        (out.loss * factor).backward()
        return out

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Scores in the last stage; zeros in others, which cannot know them."""
        prepared = self.prepare(batch)
        tokens = self._whole_tokens(prepared, contextlib.nullcontext)
        if tokens is None:
            zeros = paddle.zeros([len(prepared["target"])])
            return dict.fromkeys(self.score_names, zeros)
        return classification_scores(self.model.finish(tokens), prepared["target"])

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Those of this stage."""
        return self.task.param_groups(weight_decay)

    def after_step(self) -> None:
        """See the task."""
        self.task.after_step()

    def extra_state(self) -> dict[str, Any]:
        """See the task."""
        return self.task.extra_state()

    def load_extra_state(self, stored: Checkpoint) -> None:
        """See the task."""
        self.task.load_extra_state(stored)

    @paddle.no_grad()
    def _whole_tokens(self, batch: Batch, precision: Precision) -> Tensor | None:
        """Tokens of a whole batch behind the last block, part after part through the line; None in earlier stages."""
        bounds = self._bounds(batch)

        def stage(i: int, x: Tensor | None) -> Tensor:
            with precision():
                return self._advance({name: value[bounds[i] : bounds[i + 1]] for name, value in batch.items()}, x)

        parts = pass_forward(self.line, self._shapes(bounds), stage)
        return paddle.concat(parts) if parts else None

    def _advance(self, part: Batch, x: Tensor | None) -> Tensor:
        encoder = self.model.encoder
        return encoder.transform(encoder.embed(part["image"]) if x is None else x)

    def _bounds(self, batch: Batch) -> list[int]:
        """Where the parts of a batch begin and end."""
        count = len(batch["target"])
        sizes = [len(part) for part in np.array_split(np.arange(count), min(self.parts, count))]
        return [0, *np.cumsum(sizes).tolist()]

    def _shapes(self, bounds: Sequence[int]) -> list[list[int]]:
        return [[stop - start, *self.token_shape] for start, stop in itertools.pairwise(bounds)]

    def _from_first(self, target: Tensor | None, count: int) -> Tensor:
        """Targets of the first stage, in every stage: class numbers [B], or in training with mixing float [B, K]."""
        mixed = self.task.mixup is not None and self.training
        if target is None:
            target = paddle.empty(
                [count, self.model.num_classes] if mixed else [count], "float32" if mixed else "int64"
            )
        return self.world.pipeline.broadcast(target, self.world.pipeline.size - 1)


class BatchSizes:
    """A data set of nothing but its length, for stages that read no images."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, _key: Any) -> dict[str, np.ndarray]:
        return {SIZE: np.zeros(0, np.float32), "skipped": np.zeros((), np.int64)}
