"""Estimate of the cost of an optimizer step for one device: peak memory, and bytes sent to other devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from plsc_mae.config import ClassifyConfig, FinetuneConfig, TrainingConfig
from plsc_mae.errors import ConfigError
from plsc_mae.methods.memory_outline import FLOAT32
from plsc_mae.optim.sharding import check_stage
from plsc_mae.parallel.gpu import AMPERE, Capability
from plsc_mae.parallel.tensor import check_divisible
from plsc_mae.pipeline.task import MICRO_BATCHES_PER_STAGE
from plsc_mae.plan.activations import HALF, BlockMemory, Conditions
from plsc_mae.plan.memory import Parameters, PassMemory, States, Usage, peak
from plsc_mae.plan.sketch import Sketch

ADAMW_STATE = 2 * FLOAT32  # two moments; the other optimizers keep one velocity


class Layout(NamedTuple):
    """Division of a network and its data among processes."""

    data: int  # number of parts into which a global batch is divided
    tensor: int = 1  # number of processes that share every block
    pipeline: int = 1  # number of pipeline stages
    micro_batches: int = 1  # number of passes through the stages in one iteration; 1 without a pipeline

    @classmethod
    def of(cls, config: TrainingConfig, devices: int) -> Layout:
        """Return the layout of a run with `config` on a number of devices.

        Raises:
            ConfigError: `devices` is not a multiple of --tensor_parallel times --pipeline_parallel.
        """
        tensor, pipeline = config.tensor_parallel, config.stages
        if devices % (tensor * pipeline):
            factors = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
            groups = " x ".join(f"--{name} {factor}" for name, factor in factors.items() if factor > 1)
            raise ConfigError(
                f"--devices {devices} cannot form groups of {groups}; give a multiple of {tensor * pipeline}"
            )
        given = config.micro_batches if isinstance(config, ClassifyConfig) else None
        micro_batches = (given or MICRO_BATCHES_PER_STAGE * pipeline) if pipeline > 1 else 1
        return cls(devices // (tensor * pipeline), tensor, pipeline, micro_batches)


class Traffic(NamedTuple):
    """Bytes that a device sends in an optimizer step, by purpose."""

    gradients: float = 0
    sharding: float = 0
    tensor: float = 0
    pipeline: float = 0


class Estimate(NamedTuple):
    """Cost of an optimizer step for a device of the pipeline stage that needs the most memory."""

    layout: Layout  # division of the run among the devices
    usage: Usage  # memory in bytes at the moment that needs the most
    traffic: Traffic  # bytes that the device sends
    blocks: int  # number of the stage's transformer blocks
    flash_blocks: int  # number of these blocks whose attention runs in the flash kernel


def estimate(sketch: Sketch, config: TrainingConfig, devices: int, *, capability: Capability = AMPERE) -> Estimate:
    """Return memory and traffic of an optimizer step on a device of the stage that needs the most memory.

    Args:
        sketch: sketch of the config's task.
        config: options of the run; --device cpu computes in float32, every other value of --device counts as a GPU.
        devices: number of devices, with one process each.
        capability: compute capability of the GPUs; --deterministic rules out their flash kernel.

    Raises:
        ConfigError: the devices cannot be divided into groups, tensor parallelism does not support the network, or
            the sharding stage is not supported.
        TypeError: the task has no memory outline.
    """
    layout, low, gpu = Layout.of(config, devices), precision_bytes(config), config.device != "cpu"
    check_divisible(sketch.task.model, layout.tensor)
    check_stage(config.sharding_stage, is_gpu=gpu, shares_network=layout.tensor * layout.pipeline > 1)
    batch = -(-config.batch_size // layout.micro_batches)
    conditions = Conditions(
        batch, low, capability if gpu and not config.deterministic else (0, 0), layout.tensor, config.recompute
    )
    states = states_of(config, layout)
    cast = low == HALF and states.weight == FLOAT32
    found = []
    for stage, task in enumerate(sketch.stages):
        outline, parameters = task.memory_outline(batch, gpu=gpu), Parameters.of(task, layout.tensor)
        in_flight = min(layout.micro_batches, layout.pipeline - stage)  # with one forward, one backward (1F1B)
        memory = PassMemory.of(outline, parameters, conditions, cast=cast)
        usage = peak(memory, parameters, states, in_flight)
        traffic = _traffic(memory.blocks, parameters.trained, states, layout, config)
        own = [block for block in memory.blocks if block.entry]  # placeholders of other stages' blocks have no input
        found.append(Estimate(layout, usage, traffic, len(own), sum(block.flash for block in own)))
    return max(found, key=lambda stage: stage.usage.total)


def precision_bytes(config: TrainingConfig) -> int:
    """Return the bytes per number in matrix products; only GPUs use mixed precision."""
    return HALF if config.amp and config.device != "cpu" else FLOAT32


def states_of(config: TrainingConfig, layout: Layout) -> States:
    """Return the bytes that a run with `config` keeps per parameter, and how its processes divide them."""
    low = config.amp_level == "O2" and precision_bytes(config) == HALF
    averaged = isinstance(config, FinetuneConfig) and config.model_ema
    return States(
        weight=HALF if low else FLOAT32,
        gradient=HALF if low else FLOAT32,
        optimizer=ADAMW_STATE if config.opt == "adamw" else FLOAT32,
        master=FLOAT32 if low else 0,
        average=FLOAT32 if averaged else 0,
        sharding_stage=config.sharding_stage,
        sharded=layout.data,
        data_parallel=1 if config.device == "cpu" else layout.data,  # CPUs exchange pieces (parallel/exchange.py)
        accumulates=config.accum_iter * layout.micro_batches > 1,
    )


def _traffic(
    blocks: Iterable[BlockMemory], trained: int, states: States, layout: Layout, config: TrainingConfig
) -> Traffic:
    """Return the bytes that a device sends in an optimizer step, with collectives in rings.

    In a ring of n processes, an all-reduce of b bytes sends 2 b (n - 1) / n, and a reduce-scatter or all-gather half of
    that.
    """
    ring, passes = (layout.data - 1) / layout.data, config.accum_iter * layout.micro_batches
    gradients, weights = states.gradient * trained * ring, states.weight * trained * ring
    summed, tokens, directions = 0, 0, 1
    for block in blocks:
        summed += block.summed * (1 + block.backward * (1 + config.recompute))
        tokens, directions = max(tokens, block.entry), max(directions, 1 + block.backward)
    stage = config.sharding_stage
    return Traffic(
        gradients=(1 if stage >= 2 else 2) * gradients,
        sharding=(2 * passes if stage == 3 else min(stage, 1)) * weights,
        tensor=2 * (layout.tensor - 1) / layout.tensor * summed * passes,
        pipeline=directions * tokens * passes if layout.pipeline > 1 else 0,
    )
