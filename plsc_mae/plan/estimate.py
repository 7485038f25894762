"""What an optimizer step costs a device under a config: memory at the fullest moment, and bytes sent."""

from __future__ import annotations

from typing import NamedTuple

from plsc_mae.config import ClassifyConfig, FinetuneConfig, TrainingConfig
from plsc_mae.errors import ConfigError
from plsc_mae.optim.sharding import check_stage
from plsc_mae.pipeline.stages import check_stages
from plsc_mae.plan.activation_memory import FLOAT32, Conditions, Part
from plsc_mae.plan.memory import States, Usage, peak, stages
from plsc_mae.plan.networks import Anatomy, dissect
from plsc_mae.plan.sketch import Sketch, check_sharing

HALF = 2  # bytes of a float16 or bfloat16
ADAMW_STATE = 2 * FLOAT32  # two moments; the others have a velocity


class Layout(NamedTuple):
    """How processes share a network and its data.

    Attributes:
        data: parts into which a batch of all processes is shared out.
        tensor: processes that share every block.
        pipeline: stages.
        micro_batches: passes that follow each other through them.
    """

    data: int
    tensor: int = 1
    pipeline: int = 1
    micro_batches: int = 1

    @classmethod
    def of(cls, config: TrainingConfig, devices: int) -> Layout:
        """The layout of a config.

        Raises:
            ConfigError: the devices do not divide into its groups.
        """
        tensor, pipeline = config.tensor_parallel, getattr(config, "pipeline_parallel", 1)
        if devices % (tensor * pipeline):
            raise ConfigError(
                f"--devices {devices} cannot form groups of --tensor_parallel {tensor} x --pipeline_parallel "
                f"{pipeline}; give a multiple of {tensor * pipeline}"
            )
        passes = (getattr(config, "micro_batches", None) or 2 * pipeline) if pipeline > 1 else 1
        return cls(devices // (tensor * pipeline), tensor, pipeline, passes)


class Traffic(NamedTuple):
    """Bytes that a device sends in an optimizer step; rings let it receive as many."""

    gradients: float = 0
    sharding: float = 0
    tensor: float = 0
    pipeline: float = 0


class Estimate(NamedTuple):
    """The costs of a step, of the stage that needs the most memory."""

    layout: Layout
    usage: Usage
    traffic: Traffic


def estimate(sketch: Sketch, config: TrainingConfig, devices: int, *, flash: bool = True) -> Estimate:
    """Estimate an optimizer step.

    Args:
        sketch: of the config's task.
        config: of the run; `--device cpu` is in float32 with copies for views, everything else a GPU.
        devices: how many there are, with one process each.
        flash: whether GPUs have flash attention.

    Raises:
        ConfigError: a layout that is impossible with so many devices or with this network.
    """
    layout, low = Layout.of(config, devices), precision_bytes(config)
    check_sharing(sketch.task.model, layout.tensor)
    gpu = config.device != "cpu"
    check_stage(config.sharding_stage, is_gpu=gpu, shares_network=layout.tensor * layout.pipeline > 1)
    if layout.pipeline > 1:
        check_stages(layout.pipeline, len(sketch.task.model.encoder.blocks))
    batch = -(-config.batch_size // layout.micro_batches)
    conditions = Conditions(batch, low, flash and low == HALF, views=gpu, tensor_parallel=layout.tensor)
    anatomy, states = dissect(sketch.task, config, conditions), states_of(config, layout)
    found = []
    for stage, parts in enumerate(stages(anatomy.parts, layout.pipeline)):
        in_flight = min(layout.micro_batches, layout.pipeline - stage)  # one forward, one backward
        usage = peak(anatomy._replace(parts=parts), states, recompute=config.recompute, in_flight=in_flight)
        found.append(Estimate(layout, usage, _traffic(anatomy, parts, states, config, layout)))
    return max(found, key=lambda stage: stage.usage.total)


def precision_bytes(config: TrainingConfig) -> int:
    """Bytes of a number in matrix products: mixed precision acts on GPU only."""
    return HALF if config.amp and config.device != "cpu" else FLOAT32


def states_of(config: TrainingConfig, layout: Layout) -> States:
    """Bytes of a parameter's states under a config."""
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
        data_parallel=layout.data,
        accumulates=config.accum_iter * layout.micro_batches > 1,
    )


def _traffic(
    anatomy: Anatomy, parts: tuple[Part, ...], states: States, config: TrainingConfig, layout: Layout
) -> Traffic:
    """By rings: a sum over n processes sends 2 (n - 1) / n of its bytes, spreading or collecting parts half of that."""
    trained, ring = sum(part.trained for part in parts), (layout.data - 1) / layout.data
    gradients, weights = states.gradient * trained * ring, states.weight * trained * ring
    passes = config.accum_iter * layout.micro_batches
    sums = sum(part.exchanged * (1 + part.backward * (1 + config.recompute)) for part in parts)
    tokens = max((part.entry for part in anatomy.parts if part.block), default=0)
    directions = 1 if isinstance(config, ClassifyConfig) and config.probe != "none" else 2
    stage = config.sharding_stage
    return Traffic(
        gradients=(1 if stage >= 2 else 2) * gradients,
        sharding=(2 * passes if stage == 3 else min(stage, 1)) * weights,
        tensor=2 * (layout.tensor - 1) / layout.tensor * sums * passes,
        pipeline=directions * tokens * passes if layout.pipeline > 1 else 0,
    )
