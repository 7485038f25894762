"""Planned memory is what runs need: activations layer by layer here, peaks of whole steps in processes of their own."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae.methods import load_method
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.parallel.world import World
from plsc_mae.plan.activation_memory import Conditions, Part, Step
from plsc_mae.plan.estimate import estimate
from plsc_mae.plan.measure import random_training_batch, run_updates
from plsc_mae.plan.memory import States, Usage, moments, peak, stages
from plsc_mae.plan.networks import Anatomy, dissect
from plsc_mae.plan.sketch import sketch
from plsc_mae.train.setup import build_stepper

ROOT = Path(__file__).parents[2]
MIB = 2**20


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


@pytest.mark.compat
def test_kept_activations_are_what_the_allocator_counts(config):
    """What is alive between forward and backward: within 5 %, as masks and indices of tiny networks are not counted."""
    if getattr(config, "lr_sweep", None):
        pytest.skip("probes keep next to nothing")
    task, batch = prepared(config)
    task.train()
    planned = sum(part.kept for part in dissect(task, config, Conditions(config.batch_size)).parts)
    task(batch)
    before = allocated()
    out = task(batch)
    kept = allocated() - before
    if config.phase == "linprobe" and config.probe != "attentive":
        assert kept < MIB / 4
        assert planned < MIB / 4
    else:
        assert kept > MIB / 4
        assert planned == pytest.approx(kept, rel=0.05)
    assert out.loss is not None


@pytest.mark.long
@pytest.mark.skipif(
    not hasattr(paddle.base.core, "host_memory_stat_reset_peak_value"), reason="Paddle 2.6 cannot reset the peak"
)
def test_the_allocator_peaks_as_planned(config):
    """In a whole update; the smallest of networks, of which batch statistics and indices are a part, within 10 %."""
    gc.collect()  # networks of other tests
    start = allocated()
    task, batch = untouched(config)
    stepper = build_stepper(task, config, World("cpu"))
    for _ in range(2):
        paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
        run_updates(stepper, batch, config, updates=1)
    measured = paddle.base.core.host_memory_stat_peak_value("Allocated", 0) - start
    planned = estimate(sketch(config), config, devices=1).usage.total
    assert planned == pytest.approx(measured, rel=0.10)


# Sizes at which activations are several times what a process has anyway; two updates take some seconds.
_SMALL = "--input_size 128 --patch_size 16 --depth 4"
PEAKS = [
    f"pretrain --model mae_vit_tiny_patch16 {_SMALL} --decoder_depth 3 --batch_size 32 --clip_grad 1",
    f"finetune --model vit_base_patch16 --embed_dim 192 --num_heads 6 {_SMALL} --batch_size 64 --drop_path 0.1",
]


@pytest.mark.long
@pytest.mark.parametrize("line", PEAKS, ids=lambda line: " ".join(line.split()[:3]))
def test_peaks_of_steps_are_planned(line):
    """Of what Paddle's allocator counts; what the process has besides differs from run to run (docs/plan.md)."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "500000", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "plsc_mae", "plan", *line.split(), "--device", "cpu", "--measure"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    allocated, _, planned = (float(n) for n in re.findall(r"([\d.]+) MiB", done.stdout.splitlines()[-1]))
    assert planned > 250
    assert planned == pytest.approx(allocated, rel=0.05)


# ---------------------------------------------------------------------------------------------- arithmetic

FIRST = Part("a", (Step(100, 130, 140),), trained=10, entry=20, block=True, macs=1)
SECOND = Part("b", (Step(60, 70, 90), Step(40, 45, 50)), trained=5, frozen=3, entry=30, block=True, macs=1)
SMALL = Anatomy((FIRST, SECOND), batch=7, during_forward=2, preparing=11, apart=1, largest=4)


def by_moment(**options) -> dict[str, list[Usage]]:
    found: dict[str, list[Usage]] = {}
    for usage in moments(SMALL, States(), **options):
        found.setdefault(usage.moment, []).append(usage)
    return found


def test_a_step_moment_by_moment():
    found = by_moment()
    fixed = {"weights": 4 * (15 + 3 + 1), "optimizer": 8 * 15, "batch": 7}
    assert found["preparing the batch"] == [Usage(**fixed, working=11, moment="preparing the batch")]
    assert [(u.activations, u.working) for u in found["forward, b"]] == [(100, 72), (160, 47)]
    assert [(u.activations, u.working) for u in found["backward, b"]] == [(200, 10), (160, 30)]
    assert [(u.gradients, u.activations, u.working) for u in found["backward, a"]] == [(60, 100, 40)]
    (update,) = found["update of the weights"]
    assert (update.gradients, update.activations, update.working) == (60, 0, 16)
    assert peak(SMALL, States()).moment == "backward, b"
    assert peak(SMALL, States()).total == 76 + 120 + 7 + 20 + 200 + 10


def test_recompute_keeps_inputs_and_one_block():
    found = by_moment(recompute=True)
    assert [u.activations for u in found["forward, b"]] == [20, 80]
    assert [(u.activations, u.working) for u in found["forward again, b"]] == [(20, 70), (80, 45)]
    assert [(u.activations, u.working) for u in found["backward, b"]] == [(120, 10), (120, 30)]
    assert [(u.activations, u.working) for u in found["backward, a"]] == [(100, 40)]


def test_several_passes_in_flight_keep_as_many_activations():
    assert peak(SMALL, States(), in_flight=3).activations == 200 + 2 * 200


@pytest.mark.parametrize(
    ("stage", "expected"), [(0, (76, 120, 60)), (1, (76, 30, 60)), (2, (76, 30, 15)), (3, (31, 30, 15))]
)
def test_sharding_shares_out_states_gradients_weights(stage, expected):
    states = States(sharding_stage=stage, sharded=4, data_parallel=4)
    update = list(moments(SMALL, states))[-1]
    assert (update.weights, update.optimizer, update.gradients) == expected


def test_data_parallelism_keeps_gradients_and_fuses_a_copy():
    """Seen with 2 processes: 5 times the weights between updates of AdamW, where one process has 3 times."""
    first, *_ = moments(SMALL, States(data_parallel=2))
    assert (first.weights + first.optimizer + first.gradients + first.exchange) == 4 * (5 * 15 + 4)


def test_low_precision_weights_have_float32_masters_and_averages():
    states = States(weight=2, gradient=2, master=4, average=4, accumulates=True)
    first = next(iter(moments(SMALL, states)))
    assert first.weights == 2 * 15 + 4 * 4
    assert first.optimizer == (8 + 4 + 4) * 15
    assert first.gradients == 2 * 15


def test_stages_cut_at_blocks_into_equal_work():
    rest = Part("head", (), macs=0)
    blocks = [FIRST._replace(name=str(i)) for i in range(6)]
    cut = stages([rest, *blocks, rest], 3)
    assert [[part.name for part in stage] for stage in cut] == [["head", "0", "1"], ["2", "3"], ["4", "5", "head"]]
    assert stages([rest, *blocks], 1) == [(rest, *blocks)]
