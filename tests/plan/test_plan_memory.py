"""Planned memory is within 20 % of what Paddle's allocator counts: activations, and peaks of whole steps."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae.methods import load_method
from plsc_mae.methods.base import Task
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.methods.memory_outline import MemoryOutline, Stack
from plsc_mae.models.layers import Block
from plsc_mae.parallel.world import World
from plsc_mae.plan import measure
from plsc_mae.plan.activations import BlockMemory, Conditions, block_memory
from plsc_mae.plan.estimate import estimate
from plsc_mae.plan.measure import random_training_batch, run_updates
from plsc_mae.plan.memory import Parameters, PassMemory, States, Usage, moments, peak
from plsc_mae.plan.sketch import sketch
from plsc_mae.train.setup import build_stepper

ROOT = Path(__file__).parents[2]
MIB = 2**20
TOLERANCE = 0.2  # docs/reference/plan.md


def allocated() -> int:
    return paddle.base.core.host_memory_stat_current_value("Allocated", 0)


def prepared(config):
    """A task, and a batch that it has prepared."""
    task, batch = untouched(config)
    return task, task.prepare(batch)


def untouched(config):
    """A task and a batch."""
    if config.phase == "pretrain":
        return load_method(config.method).build_task(config), random_training_batch(config)
    task = ClassifyTask(build_classifier(config, 10), build_normalize(config), config, 10)
    images = np.random.default_rng(0).integers(0, 256, (config.batch_size, *config.image_size, 3), np.uint8)
    return task, {"image": paddle.to_tensor(images), "label": paddle.zeros([config.batch_size], "int64")}


def planned_pass(config) -> PassMemory:
    drawn = sketch(config).task
    outline = drawn.memory_outline(config.batch_size, gpu=False)
    return PassMemory.of(outline, Parameters.of(drawn, 1), Conditions(config.batch_size), cast=False)


@pytest.mark.compat
def test_kept_activations_are_what_the_allocator_counts(config):
    """The memory between forward and backward pass."""
    if getattr(config, "lr_sweep", None):
        pytest.skip("probes keep next to nothing")
    task, batch = prepared(config)
    task.train()
    memory = planned_pass(config)
    planned = memory.kept + sum(block.kept for block in memory.blocks)
    task(batch)
    before = allocated()
    out = task(batch)
    kept = allocated() - before
    if config.phase == "linprobe" and config.probe != "attentive":
        assert kept < MIB / 4
        assert planned < MIB / 4
    else:
        assert kept > MIB / 4
        assert planned == pytest.approx(kept, rel=TOLERANCE)
    assert out.loss is not None


@pytest.mark.long
@pytest.mark.skipif(
    not hasattr(paddle.base.core, "host_memory_stat_reset_peak_value"), reason="Paddle 2.6 cannot reset the peak"
)
def test_the_allocator_peaks_as_planned(config):
    """In a whole update, even of the smallest networks, where the batch and small tensors count."""
    gc.collect()  # networks of other tests
    start = allocated()
    task, batch = untouched(config)
    stepper = build_stepper(task, config, World("cpu"))
    for _ in range(2):
        paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
        run_updates(stepper, batch, config, updates=1)
    measured = paddle.base.core.host_memory_stat_peak_value("Allocated", 0) - start
    planned = estimate(sketch(config), config, devices=1).usage.total
    assert planned == pytest.approx(measured, rel=TOLERANCE)


def test_a_measured_sweep_trains_every_layer(config_of, monkeypatch):
    measured = []
    monkeypatch.setattr(measure, "TIMED_SECONDS", 0.01)
    monkeypatch.setattr(measure, "run_updates", lambda stepper, *_: measured.append(stepper.task))
    line = "linprobe --input_size 16 --patch_size 8 --embed_dim 8 --depth 1 --num_heads 2 --batch_size 2 --device cpu"
    measure.measure(config_of(f"{line} --model vit_base_patch16 --nb_classes 3 --lr_sweep 0.1 1"))
    assert measured[0].names == ["lr0.1", "lr1"]


# Sizes at which activations are several times what a process has anyway; two updates take some seconds.
_SMALL = "--input_size 128 --patch_size 16 --depth 4"
PEAKS = [
    f"pretrain --model mae_vit_tiny_patch16 {_SMALL} --decoder_depth 3 --batch_size 24 --clip_grad 1",
    f"finetune --model vit_base_patch16 --embed_dim 192 --num_heads 6 {_SMALL} --batch_size 32 --drop_path 0.1",
]


@pytest.mark.long
@pytest.mark.parametrize("line", PEAKS, ids=lambda line: " ".join(line.split()[:3]))
def test_peaks_of_steps_are_planned(line, fork_server):
    """Compare with Paddle's allocator; other memory of the process differs from run to run (docs/reference/plan.md)."""
    run = ["--num_images", "1000000", "--epochs", "50"]
    done = fork_server.run(["-m", "plsc_mae", "plan", *line.split(), "--device", "cpu", "--measure", *run])
    assert done.returncode == 0, done.stderr
    allocated, _, planned = (float(n) for n in re.findall(r"([\d.]+) MiB", done.stdout.splitlines()[-1]))
    assert planned > 150
    assert planned == pytest.approx(allocated, rel=0.05)  # closer than the smallest networks
    speed, hours = re.search(r"measured: ([\d.]+) images/s on this CPU.* takes ([\d.]+) h", done.stdout).groups()
    assert float(hours) == pytest.approx(5e7 / float(speed) / 3600, rel=0.01, abs=0.1)


# ---------------------------------------------------------------------------------------------- arithmetic

FIRST = BlockMemory(kept=100, working=40, entry=20, summed=0, trained=10, backward=True, flash=False)
SECOND = BlockMemory(kept=60, working=30, entry=30, summed=0, trained=4, backward=True, flash=False)
SMALL = PassMemory(MemoryOutline((), batch=7, prepare=11, working=2), (FIRST, SECOND), kept=5)
PARAMETERS = Parameters(trained=15, frozen=4, largest=4)


def by_moment(states: States | None = None) -> dict[str, list[Usage]]:
    found: dict[str, list[Usage]] = {}
    for usage in moments(SMALL, PARAMETERS, states or States()):
        found.setdefault(usage.moment, []).append(usage)
    return found


def test_a_step_moment_by_moment():
    found = by_moment()
    fixed = {"weights": 4 * (15 + 4), "optimizer": 8 * 15, "batch": 7}
    assert found["preparing the batch"] == [Usage(**fixed, working=11, moment="preparing the batch")]
    (end,) = found["end of the forward pass"]
    assert (end.gradients, end.activations, end.working) == (0, 165, 40)
    second, first = found["backward pass"]
    assert (second.gradients, second.activations, second.working) == (4 * (1 + 4), 165, 30)
    assert (first.gradients, first.activations, first.working) == (4 * 15, 105, 40)
    (update,) = found["update of the weights"]
    assert (update.gradients, update.activations, update.working) == (60, 0, 16)
    assert peak(SMALL, PARAMETERS, States()) == second


def test_several_passes_in_flight_keep_as_many_activations():
    assert peak(SMALL, PARAMETERS, States(), in_flight=3).activations == 3 * 165


@pytest.mark.parametrize(
    ("stage", "expected"), [(0, (76, 120, 60)), (1, (76, 30, 60)), (2, (76, 30, 15)), (3, (31, 30, 15))]
)
def test_sharding_shares_out_states_gradients_weights(stage, expected):
    states = States(sharding_stage=stage, sharded=4, data_parallel=4)
    (update,) = by_moment(states)["update of the weights"]
    assert (update.weights, update.optimizer, update.gradients) == expected


def test_data_parallelism_keeps_gradients_and_fuses_a_copy():
    """Seen with 2 processes: 5 times the weights between updates of AdamW, where one process has 3 times."""
    (first,) = by_moment(States(data_parallel=2))["preparing the batch"]
    assert (first.weights + first.optimizer + first.gradients + first.exchange) == 4 * (5 * 15 + 4)


def test_low_precision_weights_have_float32_masters_and_averages():
    (first,) = by_moment(States(weight=2, gradient=2, master=4, average=4, accumulates=True))["preparing the batch"]
    assert first.weights == 2 * 15 + 4 * 4
    assert first.optimizer == (8 + 4 + 4) * 15
    assert first.gradients == 2 * 15


# -------------------------------------------------------------------------------------------------- blocks

TOKENS, WIDTH, HEADS = 10, 32, 4


def block_bytes(conditions: Conditions, *, biased: bool = False, **block) -> BlockMemory:
    with paddle.LazyGuard():
        made = Block(WIDTH, HEADS, **block)
    return block_memory(made, Stack([made], TOKENS, TOKENS, biased=biased), conditions)


def test_a_block_keeps_64_bytes_per_token_and_column_in_float32():
    linear, softmax = 2 * TOKENS * 64 * WIDTH, 2 * TOKENS**2 * HEADS * 4
    assert block_bytes(Conditions(2)).kept == linear + softmax
    assert block_bytes(Conditions(2), layer_scale=0.1, drop_path=0.1).kept == linear + softmax + 2 * TOKENS * 16 * WIDTH


def test_flash_attention_keeps_no_softmax_weights_without_a_bias():
    mixed = 2 * TOKENS * 36 * WIDTH
    assert block_bytes(Conditions(2, low=2, capability=(8, 0))).kept == mixed
    softmax = 2 * TOKENS**2 * HEADS * 6  # in float32, and a copy in 16 bits
    assert block_bytes(Conditions(2, low=2)).kept == mixed + softmax
    assert block_bytes(Conditions(2, low=2, capability=(8, 0)), biased=True).kept == mixed + softmax


def test_recompute_keeps_the_input_and_works_with_the_rest():
    plain, again = block_bytes(Conditions(2)), block_bytes(Conditions(2, recompute=True))
    assert again.kept == again.entry == 2 * TOKENS * WIDTH * 4
    assert again.working == plain.kept + plain.working


def test_tensor_parallelism_divides_all_but_the_residual_stream():
    whole, half = block_bytes(Conditions(2)), block_bytes(Conditions(2, tensor_parallel=2))
    stream = 2 * TOKENS * WIDTH * (4 * 4)  # inputs and outputs of two norms
    assert half.kept - stream == (whole.kept - stream) // 2
    assert half.summed == 2 * (2 * TOKENS * WIDTH * 4)
    assert whole.summed == 0


def test_a_task_is_planned_by_its_own_outline():
    """A method is planned by what its Task says and by the layers of its blocks; nothing in `plan` knows methods."""

    class Other(Task):
        def __init__(self):
            super().__init__()
            self.model = Block(WIDTH, HEADS)

        def forward(self, batch):
            raise NotImplementedError

        def memory_outline(self, batch_size, *, gpu):
            return MemoryOutline((Stack([self.model], TOKENS, TOKENS),), batch=batch_size, kept=3)

    task = Other()
    memory = PassMemory.of(task.memory_outline(2, gpu=False), Parameters.of(task, 1), Conditions(2), cast=False)
    assert memory.kept == 3
    assert memory.blocks == (block_bytes(Conditions(2)),)
