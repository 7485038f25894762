"""Tasks whose networks have shapes and no weights, so that counting them costs neither memory nor time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import paddle
from paddle import nn

from plsc_mae.config import ClassifyConfig, FinetuneConfig, LinprobeConfig, PretrainConfig, TrainingConfig
from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Task
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.layers import Attention, CrossAttention, Mlp
from plsc_mae.plan.networks import num_hidden

IMAGENET_CLASSES = 1000


class Sketch(NamedTuple):
    """A task without weights.

    Attributes:
        task: what would be trained.
        forward_macs: multiply-accumulates of one image's forward pass, a tokenizer's apart.
        training_macs: of one image's training: forward and, at twice the price, backward where there is one.
    """

    task: Task
    forward_macs: int
    training_macs: int


def sketch(config: TrainingConfig) -> Sketch:
    """Make the task of a config without weights; no file is read.

    Raises:
        ConfigError: what the run itself would refuse about the network.
    """
    with paddle.LazyGuard():
        if isinstance(config, PretrainConfig):
            return _pretraining(config)
        assert isinstance(config, ClassifyConfig)
        return _classifier(config)


def _pretraining(config: PretrainConfig) -> Sketch:
    method = load_method(config.method)
    task = method.sketch_task(config)
    if isinstance(task.model, ContextAutoencoder):
        forward = sum(task.model.forward_macs(num_hidden(task, config)))
    else:
        forward = task.model.forward_macs(config.mask_ratio)  # type: ignore[attr-defined]
    return Sketch(task, forward, method.training_macs(config, task))


def _classifier(config: ClassifyConfig) -> Sketch:
    classes = config.nb_classes or IMAGENET_CLASSES
    model = build_classifier(config, classes)
    encoder, behind = model.forward_macs()
    training = encoder + 3 * behind if model.probe != "none" else 3 * (encoder + behind)
    unaveraged = dataclasses.replace(config, model_ema=False) if isinstance(config, FinetuneConfig) else config
    sweep = isinstance(config, LinprobeConfig) and bool(config.lr_sweep)
    task = (SweepTask if sweep else ClassifyTask)(model, build_normalize(config), unaveraged, classes)  # type: ignore[arg-type]
    return Sketch(task, encoder + behind, training)


def check_sharing(model: nn.Layer, ways: int) -> None:
    """Refuse what tensor parallelism over so many processes cannot share out.

    Raises:
        ConfigError: heads or hidden columns of a block do not divide by them.
    """
    for count, what in _shared_counts(model):
        if count % ways:
            raise ConfigError(f"--tensor_parallel {ways} does not divide the {count} {what} of a block")


def _shared_counts(model: nn.Layer) -> Iterable[tuple[int, str]]:
    for layer in model.sublayers():
        if isinstance(layer, (Attention, CrossAttention)):
            yield layer.num_heads, "attention heads"
        elif isinstance(layer, Mlp):
            yield layer.fc1.weight.shape[1], "hidden columns"
