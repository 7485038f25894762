"""What `plsc-mae plan --measure` adds: the peak memory of real updates on random images, to hold the plan against."""

from __future__ import annotations

import os
import resource
from typing import Any, NamedTuple

import numpy as np
import paddle

from plsc_mae.commands.bench import RandomImage
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch, Task
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize, train_transform
from plsc_mae.models.recompute import keep_no_activations
from plsc_mae.optim import build_optimizer
from plsc_mae.parallel.world import World
from plsc_mae.plan.sketch import IMAGENET_CLASSES
from plsc_mae.train.step import Stepper, choose_precision, lower_weights

UPDATES = 2  # the first makes the optimizer state


class Measured(NamedTuple):
    """Peaks in bytes: of Paddle's allocator, and on CPU of the process beyond what it has without the network."""

    allocated: int
    resident: int | None


def measure(config: Any) -> Measured:
    """Run a few updates of a config in this process."""
    world = World(config.device)
    paddle.matmul(paddle.randn([64, 64]), paddle.randn([64, 64]))  # threads and buffers of the libraries
    before = _resident_bytes()
    _train(config, world)
    if world.is_gpu:
        return Measured(paddle.device.cuda.max_memory_allocated(), None)
    peak = paddle.base.core.host_memory_stat_peak_value("Allocated", 0)
    return Measured(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _train(config: Any, world: World) -> None:
    batch, task = _random_batch(config), _build_task(config)
    if config.recompute:
        keep_no_activations(task.model)
    params = [p for p in task.parameters() if not p.stop_gradient]
    betas, momentum = config.opt_betas, config.momentum
    groups = task.param_groups(config.weight_decay)
    optimizer = build_optimizer(config.opt, groups, betas=betas, eps=config.opt_eps, momentum=momentum)
    optimizer.set_lr(1e-4)
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
    lower_weights(task, optimizer, precision)
    stepper = Stepper(task, params, optimizer, clip_grad=config.clip_grad, precision=precision)
    task.train()
    for i in range(UPDATES * config.accum_iter):
        last = (i + 1) % config.accum_iter == 0
        stepper(task.prepare(batch), group_size=config.accum_iter, update=last)
        if last:
            task.after_step()


def _random_batch(config: Any) -> Batch:
    rng = np.random.default_rng(config.seed)
    pretraining = config.phase == "pretrain"
    transform = load_method(config.method).train_transform(config) if pretraining else train_transform(config)
    samples = [transform(RandomImage(rng), rng) for _ in range(config.batch_size)]
    batch = {name: paddle.to_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    return batch if pretraining else {**batch, "label": paddle.zeros([config.batch_size], "int64")}


def _build_task(config: Any) -> Task:
    if config.phase == "pretrain":
        return load_method(config.method).build_task(config)
    classes = config.nb_classes or IMAGENET_CLASSES
    return ClassifyTask(build_classifier(config, classes), build_normalize(config), config, classes)
