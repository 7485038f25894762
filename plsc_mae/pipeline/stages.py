"""Division of a classifier's blocks into pipeline stages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.config import ClassifyConfig
from plsc_mae.errors import ConfigError
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.parallel.world import World
from plsc_mae.pipeline.schedule import Line
from plsc_mae.wording import counted

MEASURED_IMAGES = 2


class RemoteLayer(nn.Layer):
    """Placeholder for layers that live in another process."""

    def forward(self, x: Tensor, **_options: Any) -> Tensor:
        """Return the input unchanged."""
        return x


def check_stages(stages: int, depth: int) -> None:
    """Raise ConfigError unless every stage gets at least one block."""
    if stages > depth:
        raise ConfigError(
            f"--pipeline_parallel {stages} exceeds the network's {counted(depth, 'block')}; use at most one stage "
            "per block"
        )


def check_pipeline_options(config: ClassifyConfig) -> None:
    """Raise ConfigError if features are cached or learning rates are swept, which a pipeline does not support."""
    for name in ("cache_features", "lr_sweep"):
        if getattr(config, name, None):
            raise ConfigError(f"--{name} and --pipeline_parallel cannot be combined; leave one of them out")


def balanced_stages(costs: Sequence[float], stages: int) -> list[range]:
    """Return the block indices of each stage, such that the most expensive stage costs as little as possible.

    Args:
        costs: cost of each block in the order of the network, in any unit.
        stages: number of stages, at most the number of blocks.
    """
    sums = [0.0, *itertools.accumulate(costs)]
    count = len(costs)
    # best[k][n] = (minimal cost of the most expensive of k + 1 stages over the first n blocks, start of the last stage)
    best = [[(sums[n], 0) for n in range(count + 1)]]
    for k in range(1, stages):
        best.append(
            [
                min(((max(best[-1][m][0], sums[n] - sums[m]), m) for m in range(k, n)), default=(float("inf"), 0))
                for n in range(count + 1)
            ]
        )
    bounds = [count]
    for k in reversed(range(stages)):
        bounds.insert(0, best[k][bounds[0]][1])
    return [range(*bound) for bound in itertools.pairwise(bounds)]


def stages_by_cost(model: ImageClassifier, world: World) -> list[range]:
    """Return the block indices of each stage, balanced by measured times of a block, the embedding and the head.

    All processes must call; they use the measurement of the main process.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    stages = world.pipeline.size
    check_stages(stages, len(model.encoder.blocks))
    costs = paddle.to_tensor(_block_seconds(model), dtype="float64")
    if world.processes > 1:
        world.barrier()  # reading weights can take one process longer than the broadcast's timeout
        paddle.distributed.broadcast(costs, src=0)
    return balanced_stages(costs.tolist(), stages)


def keep_stage(model: ImageClassifier, line: Line, blocks: range) -> None:
    """Reduce a network to the layers of one stage; their parameters keep their names.

    Args:
        model: the whole network, modified in place.
        line: position of this process in the pipeline.
        blocks: indices of the blocks of this stage.

    Raises:
        ConfigError: the blocks share one relative position bias.
    """
    encoder = model.encoder
    if encoder.rel_pos_bias is not None:
        raise ConfigError(
            "--pipeline_parallel cannot divide blocks that share one relative position bias; use --tensor_parallel"
        )
    for i in range(len(encoder.blocks)):
        if i not in blocks:
            encoder.blocks[i] = RemoteLayer()
    if not line.is_first:
        encoder.patch_embed, encoder.cls_token, encoder.pos_embed = RemoteLayer(), None, None
        encoder.register_tokens = None
    if not line.is_last:
        encoder.norm, model.head, model.fc_norm = RemoteLayer(), RemoteLayer(), None
        if model.probe == "attentive":
            model.query_token, model.attentive_blocks = None, RemoteLayer()


def stages_by_operations(model: ImageClassifier, stages: int) -> list[range]:
    """Return the block indices of each stage, balanced by multiply-accumulates, for networks that are not run.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    encoder = model.encoder
    check_stages(stages, len(encoder.blocks))
    tokens = encoder.num_patches + encoder.num_prefix_tokens
    costs = [block.macs(tokens) for block in encoder.blocks]
    whole = encoder.forward_macs(tokens)
    costs[0] += whole - sum(costs)
    costs[-1] += sum(model.forward_macs()) - whole
    return balanced_stages(costs, stages)


def _block_seconds(model: ImageClassifier) -> list[float]:
    """Return the seconds of each block for MEASURED_IMAGES images, including the backward pass of trained layers.

    Each value is the median of all blocks; the first one includes the embedding, the last one the head.
    """
    encoder, seconds = model.encoder, []
    model.eval()
    layers = [encoder.embed, *encoder.blocks, model.finish]
    x = paddle.zeros([MEASURED_IMAGES, encoder.patch_embed.proj.weight.shape[1], *encoder.img_size])
    for layer in layers:
        for _ in range(2):  # the first pass includes allocations
            x = x.detach()
            started = time.perf_counter()
            y = layer(x)
            if not y.stop_gradient:
                y.sum().backward()
            y.numpy()  # wait for the device
            last = time.perf_counter() - started
        seconds.append(last)
        x = y
    for param in model.parameters():
        param.clear_gradient(False)
    first, *measured, end = seconds
    # Blocks of equal shape cost the same, so use the median: noise would change the division at every start.
    blocks = [float(np.median(measured))] * len(measured)
    blocks[0] += first
    blocks[-1] += end
    return blocks
