"""`plsc-mae bench step` and `plsc-mae bench data`: where the time of a run goes.

Both take the options of a pre-training run, so that what is measured is what will run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Iterator

import numpy as np
import paddle

from plsc_mae.commands.pretrain import build_dataset, share_network, training_loader, training_world
from plsc_mae.config import PretrainConfig
from plsc_mae.data.decode import Box, Interpolation, Pixels, SourceImage
from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch
from plsc_mae.optim import build_adamw
from plsc_mae.parallel.world import World
from plsc_mae.train.log.run_logger import peak_memory_gib
from plsc_mae.train.step import Stepper, choose_precision, lower_weights

WARMUP_STEPS = 2
DEFAULT_STEPS = 10
PEAK_SHAPE = (2048, 2048)


class RandomImage(SourceImage):
    """An image of random pixels that is never decoded: what a step costs does not depend on what it sees."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.path, self.width, self.height, self.rng = "random", 256, 256, rng

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Pixels:
        """Draw pixels of the wanted size."""
        return self.rng.integers(0, 256, (*size, 3), np.uint8)


def run_step(config: PretrainConfig) -> None:
    """Time optimizer steps: on random images, or on real ones when --data_path is given.

    `--max_train_step` is the number of timed steps. The last line is JSON.
    """
    world = training_world(config)
    method = load_method(config.method)
    paddle.seed(config.seed)
    task = method.build_task(config)
    share_network(task.model, config, world)
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
    params = [p for p in task.parameters() if not p.stop_gradient]
    optimizer = build_adamw(task.param_groups(config.weight_decay), betas=config.opt_betas, eps=config.opt_eps)
    optimizer.set_lr(1e-4)
    lower_weights(task, optimizer, precision)
    stepper = Stepper(world.wrap(task), params, optimizer, clip_grad=config.clip_grad, precision=precision, world=world)
    task.train()

    steps = config.max_train_step or DEFAULT_STEPS
    seconds, preparing, waited = [], [], 0.0
    batches = _batches(config, world)
    for i in range(WARMUP_STEPS + steps):
        started = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        batch = task.prepare(batch)
        _synchronize(world)
        prepared = time.perf_counter()
        stepper(batch, group_size=1, update=True)
        _synchronize(world)
        if i >= WARMUP_STEPS:
            seconds.append(time.perf_counter() - started)
            preparing.append(prepared - ready)
            waited += ready - started
    images_per_second = config.batch_size * world.size / statistics.median(seconds)
    network = statistics.median(total - part for total, part in zip(seconds, preparing, strict=True))
    gflops = 2 * method.training_macs(config, task) * config.batch_size * world.size / network / 1e9
    peak = matmul_gflops(world) * world.size
    if not world.is_main:
        return
    print(f"{config.model}, {precision.note}, batch {config.batch_size} x {world}")
    print(f"{images_per_second:.2f} images/s, {statistics.median(seconds):.3g} s per step")
    print(
        f"network {network:.3g} s, {gflops:.0f} GFLOP/s of {peak:.0f} measured in a large matrix product; "
        f"preparing targets {statistics.median(preparing):.3g} s"
    )
    print(
        f"waiting for data {waited / sum(seconds):.0%}, peak memory {peak_memory_gib(world.is_gpu):.1f} GiB per process"
    )
    print(
        json.dumps(
            {
                "name": f"plsc_mae, {world}",
                "images_per_second": images_per_second,
                "seconds_per_step": seconds,
                "seconds_preparing": preparing,
                "batch_size": config.batch_size * world.size,
                "processes": world.size,
                "gflops": gflops,
                "matmul_gflops": peak,
                "data_share": waited / sum(seconds),
                "memory_gib": peak_memory_gib(world.is_gpu),
                "paddle": paddle.__version__,
            }
        ),
        flush=True,
    )


def run_data(config: PretrainConfig) -> None:
    """Time the loader alone, without a network: decode, crop, resize, collate and hand over."""
    if not config.data_path:
        raise ConfigError("--data_path is required: an image folder or a list file")
    world = World(config.device)
    dataset = build_dataset(config, load_method(config.method))
    steps = config.max_train_step or DEFAULT_STEPS
    counts = [0, 1, 2] if config.num_workers is None else [config.num_workers]
    for workers in counts:
        loader = training_loader(dataset, dataclasses.replace(config, num_workers=workers), world)
        batches = iter(loader)
        next(batches)
        started, images = time.perf_counter(), 0
        for batch in itertools.islice(batches, steps):
            images += len(batch["index"])
        speed = images / (time.perf_counter() - started)
        del batches  # ends its workers
        print(f"{config.image_backend}, {workers} workers: {speed:.0f} images/s", flush=True)


def matmul_gflops(world: World, repeats: int = 10) -> float:
    """Speed of a large float32 matrix product on this process's share of the machine."""
    a, b = paddle.randn(PEAK_SHAPE), paddle.randn(PEAK_SHAPE)
    paddle.matmul(a, b)
    _synchronize(world)
    started = time.perf_counter()
    for _ in range(repeats):
        paddle.matmul(a, b)
    _synchronize(world)
    return 2 * PEAK_SHAPE[0] ** 2 * PEAK_SHAPE[1] * repeats / (time.perf_counter() - started) / 1e9


def _synchronize(world: World) -> None:
    if world.is_gpu:
        paddle.device.cuda.synchronize()


def _batches(config: PretrainConfig, world: World) -> Iterator[Batch]:
    method = load_method(config.method)
    if config.data_path:
        loader = training_loader(build_dataset(config, method), config, world)
        while True:
            yield from loader
    transform = method.train_transform(config)
    rng = np.random.default_rng(config.seed)
    samples = [transform(RandomImage(rng), rng) for _ in range(config.batch_size)]
    batch = {name: paddle.to_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    while True:
        yield batch
