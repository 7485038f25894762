"""`plsc-mae bench step` and `plsc-mae bench data`: measure the speed of training steps and of data loading.

Both take the options of `plsc-mae pretrain`.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import paddle

from plsc_mae.config import PretrainConfig
from plsc_mae.data.random_images import random_batch
from plsc_mae.data.transfer import INDEX
from plsc_mae.loading import pixel_settings
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch
from plsc_mae.optim import Rates
from plsc_mae.parallel.world import World
from plsc_mae.train.log.run_logger import peak_memory_gib
from plsc_mae.train.scaling import images_per_update
from plsc_mae.train.setup import (
    build_stepper,
    pretraining_dataset,
    settle_pixels,
    share_network,
    training_loader,
    training_world,
)
from plsc_mae.train.step import Stepper

WARMUP_STEPS = 2
DEFAULT_STEPS = 10
LEARNING_RATE = 1e-4  # small enough that no network diverges within the measured steps
PEAK_SHAPE = (2048, 2048)


class StepTimes(NamedTuple):
    """Durations within one optimizer step, in seconds."""

    total: float  # the whole step
    waiting: float  # the wait for batches
    preparing: float  # `Task.prepare`, which for example computes a tokenizer's targets

    @property
    def network(self) -> float:
        """Seconds of the step without `Task.prepare`; the wait for batches is included."""
        return self.total - self.preparing


def run_step(config: PretrainConfig) -> None:
    """Time optimizer steps on random images, or on real ones if --data_path is given, and print the speed.

    --max_train_step is the number of timed steps, which follow WARMUP_STEPS untimed ones. The last line of the output
    is JSON. All processes must call.

    Raises:
        UserError: options, images or files cannot be used.
    """
    world = training_world(config)
    method = load_method(config.method)
    paddle.seed(config.seed)
    task = method.build_task(config)
    share_network(task.model, config, world)
    stepper = build_stepper(task, config, world)
    stepper.set_rates(Rates(LEARNING_RATE, config.weight_decay))
    task.train()
    batches, steps = _batches(config, world), config.max_train_step or DEFAULT_STEPS
    times = [time_step(stepper, batches, config, world) for _ in range(WARMUP_STEPS + steps)][WARMUP_STEPS:]
    network = statistics.median(step.network for step in times)
    gflops = 2 * method.training_macs(config, task) * images_per_update(config, world) / network / 1e9
    peak = matmul_gflops(world) * world.size
    if world.is_main:
        _print_times(config, world, stepper, times, gflops, peak)


def time_step(stepper: Stepper, batches: Iterator[Batch], config: PretrainConfig, world: World) -> StepTimes:
    """Run one optimizer step of --accum_iter batches and return its durations; all processes must call."""
    waiting = preparing = 0.0
    started = time.perf_counter()
    for i in range(config.accum_iter):
        asked = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        batch = stepper.task.prepare(batch)
        world.synchronize()
        waiting += ready - asked
        preparing += time.perf_counter() - ready
        stepper.forward_backward(batch, group_size=config.accum_iter, last=i + 1 == config.accum_iter)
    stepper.apply_update()
    world.synchronize()
    return StepTimes(time.perf_counter() - started, waiting, preparing)


def _print_times(
    config: PretrainConfig, world: World, stepper: Stepper, times: list[StepTimes], gflops: float, peak: float
) -> None:
    images, seconds = images_per_update(config, world), [step.total for step in times]
    waiting = sum(step.waiting for step in times) / sum(seconds)
    memory = peak_memory_gib(world.is_gpu)
    result = {
        "name": f"plsc_mae, {world}",
        "images_per_second": images / statistics.median(seconds),
        "seconds_per_step": seconds,
        "seconds_preparing": [step.preparing for step in times],
        "batch_size": images,
        "processes": world.size,
        "gflops": gflops,
        "matmul_gflops": peak,
        "data_share": waiting,
        "memory_gib": memory,
        "paddle": paddle.__version__,
    }
    accumulated = f" x accum_iter {config.accum_iter}" if config.accum_iter > 1 else ""
    print(f"{config.model}, {config.opt}, {stepper.precision.note}, batch {config.batch_size} x {world}{accumulated}")
    print(f"{result['images_per_second']:.2f} images/s, {statistics.median(seconds):.3g} s per step")
    print(
        f"network {statistics.median(step.network for step in times):.3g} s, {gflops:.0f} GFLOP/s of {peak:.0f} "
        f"measured in a large matrix product; preparing targets "
        f"{statistics.median(step.preparing for step in times):.3g} s"
    )
    print(f"waiting for data {waiting:.0%}, peak memory {memory:.1f} GiB per process")
    print(json.dumps(result), flush=True)


def run_data(config: PretrainConfig) -> None:
    """Print the images per second of this process's loader, from reading files to batches on the device.

    The speed is measured with --num_workers or, without that option, with 0, 1 and 2 workers.

    Raises:
        UserError: options or images cannot be used.
    """
    world = World(config.device)
    config = settle_pixels(config, None)
    dataset = pretraining_dataset(config, load_method(config.method))
    steps = config.max_train_step or DEFAULT_STEPS
    counts = [0, 1, 2] if config.num_workers is None else [config.num_workers]
    for workers in counts:
        loader = training_loader(dataset, config, world, num_workers=workers)
        batches = iter(loader)
        next(batches)
        started, images = time.perf_counter(), 0
        for batch in itertools.islice(batches, steps):
            images += len(batch[INDEX])
        speed = images / (time.perf_counter() - started)
        del batches  # ends the worker processes
        print(f"{config.image_backend}, {workers} workers: {speed:.0f} images/s", flush=True)


def matmul_gflops(world: World, repeats: int = 10) -> float:
    """Return the GFLOP/s of this process in a large float32 matrix product."""
    a, b = paddle.randn(PEAK_SHAPE), paddle.randn(PEAK_SHAPE)
    paddle.matmul(a, b)
    world.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        paddle.matmul(a, b)
    world.synchronize()
    return 2 * PEAK_SHAPE[0] ** 2 * PEAK_SHAPE[1] * repeats / (time.perf_counter() - started) / 1e9


def _batches(config: PretrainConfig, world: World) -> Iterator[Batch]:
    """Return an endless iterator over the batches of --data_path or, without it, over one random batch."""
    method = load_method(config.method)
    if not config.data_path:
        batch = random_batch(
            method.train_transform(config),
            config.batch_size,
            config.seed,
            pixel_format=pixel_settings.settled_format(config),
        )
        return itertools.repeat(batch)
    loader = training_loader(pretraining_dataset(settle_pixels(config, None), method), config, world)
    return itertools.chain.from_iterable(itertools.repeat(loader))
