"""Peak memory and speed of real updates on random images, for `plsc-mae plan --measure`."""

from __future__ import annotations

import os
import resource
import time
from typing import NamedTuple

import paddle

from plsc_mae.config import ClassifyConfig, LinprobeConfig, PretrainConfig, TrainingConfig
from plsc_mae.data.random_images import random_batch
from plsc_mae.loading import pixel_settings
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch, Task
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize, train_transform
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.models.deterministic import choose_kernels
from plsc_mae.optim import Rates
from plsc_mae.parallel.world import World
from plsc_mae.plan.sketch import IMAGENET_CLASSES
from plsc_mae.train.setup import build_stepper, share_network
from plsc_mae.train.step import Stepper

# Updates before the clock starts. They allocate the optimizer state, so the next ones reach the peak of memory.
WARMUP = 1
TIMED_SECONDS = 3.0  # the speed is that of whole updates, at least one, over at least this time
LEARNING_RATE = 1e-4


class Measurement(NamedTuple):
    """Memory and speed of updates in this process."""

    allocated: int  # peak of Paddle's allocator since the start of the process, in bytes
    # peak of the process's resident memory less its size before the network is built, in bytes; None on GPU
    resident: int | None
    images_per_second: float  # speed of whole updates; the images are in memory already


def measure(config: TrainingConfig) -> Measurement:
    """Run updates of the network of `config` in this process and return their peak memory and speed.

    Raises:
        UserError: the options or a file that the network needs cannot be used.
    """
    choose_kernels(deterministic=config.deterministic)
    world = World(config.device)
    paddle.matmul(paddle.randn([64, 64]), paddle.randn([64, 64]))  # starts the libraries' threads and buffers
    before = _resident_bytes()
    batch, task = random_training_batch(config), _build_task(config)
    share_network(task.model, config, world)
    stepper = build_stepper(task, config, world)
    run_updates(stepper, batch, config, WARMUP)
    speed = _images_per_second(stepper, batch, config, world)
    if world.is_gpu:
        return Measurement(paddle.device.cuda.max_memory_allocated(), None, speed)
    peak = paddle.base.core.host_memory_stat_peak_value("Allocated", 0)
    return Measurement(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, speed)


def _images_per_second(stepper: Stepper, batch: Batch, config: TrainingConfig, world: World) -> float:
    """Return the speed of further updates, which run until `TIMED_SECONDS` have passed."""
    updates, start, passed = 0, time.perf_counter(), 0.0
    while passed < TIMED_SECONDS:
        run_updates(stepper, batch, config, 1)
        world.synchronize()
        updates, passed = updates + 1, time.perf_counter() - start
    return updates * config.batch_size * config.accum_iter / passed


def run_updates(stepper: Stepper, batch: Batch, config: TrainingConfig, updates: int) -> None:
    """Run `updates` updates; each accumulates the gradients of `batch` --accum_iter times."""
    stepper.set_rates(Rates(LEARNING_RATE, config.weight_decay))
    stepper.task.train()
    for _ in range(updates):
        for i in range(config.accum_iter):
            last = i + 1 == config.accum_iter
            stepper.forward_backward(stepper.task.prepare(batch), group_size=config.accum_iter, last=last)
        stepper.apply_update()


def random_training_batch(config: TrainingConfig) -> Batch:
    """Return a batch of random images, transformed as in training with `config`; for classifiers, all of class 0.

    Raises:
        ConfigError: options of the pixels or of the augmentation are invalid.
    """
    pixel_format = pixel_settings.settled_format(config)
    if isinstance(config, PretrainConfig):
        return random_batch(
            load_method(config.method).train_transform(config),
            config.batch_size,
            config.seed,
            pixel_format=pixel_format,
        )
    assert isinstance(config, ClassifyConfig)
    return random_batch(
        train_transform(config), config.batch_size, config.seed, labeled=True, pixel_format=pixel_format
    )


def _build_task(config: TrainingConfig) -> Task:
    if isinstance(config, PretrainConfig):
        return load_method(config.method).build_task(config)
    assert isinstance(config, ClassifyConfig)
    classes = config.nb_classes or IMAGENET_CLASSES
    model, normalize = build_classifier(config, classes), build_normalize(config)
    if isinstance(config, LinprobeConfig) and config.lr_sweep:
        return SweepTask(model, normalize, config, classes)
    return ClassifyTask(model, normalize, config, classes)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
