"""Tasks without weights, for plans: the shapes of a network determine its cost."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import paddle

from plsc_mae.config import ClassifyConfig, FinetuneConfig, LinprobeConfig, PretrainConfig, TrainingConfig
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Task
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.parallel.group import Group
from plsc_mae.pipeline.schedule import Line
from plsc_mae.pipeline.stages import check_pipeline_options, keep_stage, stages_by_operations

IMAGENET_CLASSES = 1000


class Sketch(NamedTuple):
    """Task without weights, and the number of its operations."""

    task: Task
    forward_macs: int  # multiply-accumulates of one image's forward pass; a tokenizer is not counted
    training_macs: int  # multiply-accumulates of one image's update; a backward pass costs twice its forward pass
    stages: tuple[Task, ...]  # the task of each pipeline stage; only the whole task if there is no pipeline


def check_network(config: TrainingConfig) -> None:
    """Check that the options describe a network, before a run reads its images; no weights are created.

    The device is set to the CPU, because the processes of a run choose theirs later.
    """
    paddle.set_device("cpu")
    sketch(config)


def sketch(config: TrainingConfig) -> Sketch:
    """Return the task of a config without weights, and the number of its operations; no file is read.

    A classifier has 1000 outputs if --nb_classes is not set.

    Raises:
        ConfigError: the options name no network, or do not fit together.
    """
    with paddle.LazyGuard():
        if isinstance(config, PretrainConfig):
            return _pretraining(config)
        if isinstance(config, ClassifyConfig):
            return _classifier(config)
    raise TypeError(f"{type(config).__name__} has no network")


def _pretraining(config: PretrainConfig) -> Sketch:
    method = load_method(config.method)
    task = method.sketch_task(config)
    return Sketch(task, method.forward_macs(config, task), method.training_macs(config, task), (task,))


def _classifier(config: ClassifyConfig) -> Sketch:
    task = _classify_task(config)
    encoder, head = task.model.forward_macs()
    training = encoder + 3 * head if task.model.probe != "none" else 3 * (encoder + head)
    return Sketch(task, encoder + head, training, _pipeline_stages(config) or (task,))


def _classify_task(config: ClassifyConfig) -> ClassifyTask:
    classes = config.nb_classes or IMAGENET_CLASSES
    model, normalize = build_classifier(config, classes), build_normalize(config)
    if isinstance(config, LinprobeConfig) and config.lr_sweep:
        return SweepTask(model, normalize, config, classes)
    # The moving average would copy weights, which do not exist here; `estimate` counts its memory.
    unaveraged = dataclasses.replace(config, model_ema=False) if isinstance(config, FinetuneConfig) else config
    return ClassifyTask(model, normalize, unaveraged, classes)


def _pipeline_stages(config: ClassifyConfig) -> tuple[ClassifyTask, ...]:
    """Return the task of each pipeline stage; () without a pipeline.

    Blocks are divided by their number of operations; a run divides them by measured seconds.
    """
    count = config.pipeline_parallel
    if count == 1:
        return ()
    check_pipeline_options(config)
    tasks = [_classify_task(config) for _ in range(count)]
    neighbor = Group.alone()
    for stage, (task, blocks) in enumerate(zip(tasks, stages_by_operations(tasks[0].model, count), strict=True)):
        line = Line(stage, count, neighbor if stage else None, neighbor if stage < count - 1 else None)
        keep_stage(task.model, line, blocks)
    return tuple(tasks)
