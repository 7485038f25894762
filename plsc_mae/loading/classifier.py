"""Trained classifiers for the tools, frozen and in evaluation mode, with their transform and class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from plsc_mae import weights
from plsc_mae.config import PHASES
from plsc_mae.config.inference import ExplainConfig, PredictConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import CheckpointError
from plsc_mae.loading.class_names import numbered_names, read_head
from plsc_mae.loading.classifier_weights import load_classifier_weights
from plsc_mae.loading.encoder import infer_encoder_arguments, newer_parts, normalization
from plsc_mae.loading.training_config import set_final_eps, trained_eps
from plsc_mae.methods.classify import build_classifier, build_normalize, validation_transform
from plsc_mae.methods.label_kinds import BalancedClasses, LabelKind, stored_kind
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects.base import count_blocks
from plsc_mae.wording import counted


class LoadedClassifier(NamedTuple):
    """A classifier, its normalization and transform, its class names, and a line about the origin of its weights."""

    network: ImageClassifier
    normalize: Normalize
    transform: ResizeCenterCrop  # of validation images; deterministic
    classes: tuple[str, ...]
    origin: str


def load_classifier(
    source: str | Checkpoint,
    *,
    model_key: str = "",
    model_prefix: str = "",
    classes: str = "",
    num_heads: int | None = None,
    input_size: tuple[int, ...] | None = None,
    global_pool: bool | None = None,
    in_chans: int | None = None,
) -> LoadedClassifier:
    """Build and load the classifier of a checkpoint, by plsc_mae's stored options or else by the shapes of its tensors.

    Args:
        source: the checkpoint, of plsc_mae or of another code base, or its content.
        model_key: key of the weights in the file, such as "model_ema"; "" to find them. Unused if `source` is content.
        model_prefix: prefix of the network's tensor names; unused if `source` is content.
        classes: text file with one class name per line, in place of the checkpoint's names.
        num_heads: attention heads, needed if the file does not determine them.
        input_size: image side, or height and width, in place of the checkpoint's; positions are resized.
        global_pool: True to classify the mean of the patch tokens, False the class token; None infers it from the file.
        in_chans: channels of the images, in place of the checkpoint's; the patch embedding is converted.

    Raises:
        CheckpointError: the file cannot be read, or holds no classifier that plsc_mae can build.
        ConfigError: the number of heads is unknown, or an option does not fit.
        DataError: the file of names cannot be read, or does not have one name per class.
    """
    stored = source if isinstance(source, Checkpoint) else weights.read_network(source, model_key, model_prefix)
    eps = trained_eps(stored)
    stored = decoded(stored, num_heads, 1)  # classifiers have no decoder
    head = read_head(stored, classes)
    given = {"num_heads": num_heads, "input_size": input_size, "global_pool": global_pool, "in_chans": in_chans}
    if stored.meta.get("phase") in PHASES and "args" in stored.meta:
        network, normalize, transform = _by_options(stored, head.outputs, given)
    else:
        arguments = _arguments(stored, num_heads, input_size, global_pool) | ({"norm_eps": eps} if eps else {})
        arguments["in_chans"] = in_chans or arguments["in_chans"]
        network = ImageClassifier(num_classes=head.outputs, **arguments)
        normalize = normalization(stored, network.encoder.in_chans)
        transform = evaluation_transform(network.encoder.img_size)
    resize = input_size is not None or in_chans is not None
    report = load_classifier_weights(network, stored, resize=resize, by_options=False)
    set_final_eps(network, stored)
    network.eval()
    for parameter in network.parameters():
        parameter.stop_gradient = True
    origin = f"{stored.path}: {report}, {counted(head.outputs, 'class')}{_epoch(stored)}"
    return LoadedClassifier(network, normalize, transform, numbered_names(head), origin)


def _epoch(stored: Checkpoint) -> str:
    """Return a clause on the epoch of a run's checkpoint and, if it is the best one, its metric; "" for other files."""
    meta = stored.meta
    if meta.get("phase") not in PHASES or "epoch" not in meta:
        return ""
    if meta.get("best_step", -1) < 0 or meta["best_step"] != meta.get("step"):
        return f", epoch {meta['epoch']}"
    kind = BalancedClasses() if meta.get("args", {}).get("balance_classes") else stored_kind(meta, stored.path)
    return f", epoch {meta['epoch']} with test_{kind.best_metric} {meta['best']:.4g}"


def open_classifier(config: PredictConfig | ExplainConfig) -> LoadedClassifier:
    """Load the classifier named by the options of a command.

    Raises:
        CheckpointError: see `load_classifier`; or the network predicts labels of another kind than classes.
        ConfigError: see `load_classifier`.
        DataError: see `load_classifier`.
    """
    trained, kind = open_predictor(config)
    if kind.dense:
        raise CheckpointError(
            f"{config.model_path} predicts {kind.noun} ({kind.task}); expected a classifier of one class per image"
        )
    return trained


def open_predictor(config: PredictConfig | ExplainConfig) -> tuple[LoadedClassifier, LabelKind]:
    """Return (network named by the options of a command, kind of its labels); for the errors see `load_classifier`."""
    stored = weights.read_network(config.model_path, config.model_key, config.model_prefix)
    trained = load_classifier(
        stored,
        classes=config.classes,
        num_heads=config.num_heads,
        input_size=config.input_size,
        global_pool=config.global_pool,
        in_chans=config.wanted_channels,
    )
    return trained, stored_kind(stored.meta, stored.path)


def _by_options(
    stored: Checkpoint, num_classes: int, given: Mapping[str, Any]
) -> tuple[ImageClassifier, Normalize, ResizeCenterCrop]:
    """Build (network, normalization, transform) from the options in a checkpoint of plsc_mae.

    Values of `given` that are not None replace stored options of the same names.
    """
    config = from_mapping(stored.meta["args"], PHASES[stored.meta["phase"]], str(stored.path))
    config = dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})
    network = build_classifier(config, num_classes, **newer_parts(stored, config.image_size))
    return network, build_normalize(config), validation_transform(config)


def _arguments(
    stored: Checkpoint, num_heads: int | None, input_size: tuple[int, ...] | None, global_pool: bool | None
) -> dict[str, Any]:
    """Infer the arguments of `ImageClassifier` from a file of another code base, also `global_pool` if it is None."""
    rules, options = recognize(stored.model, str(stored.path)), stored.meta.get("args")
    encoder = infer_encoder_arguments(stored, num_heads, input_size)

    def has(name: str) -> bool:
        return rules.foreign_name(name) in stored.model

    norm_pooled, batch_norm = has("fc_norm.weight"), has("fc_norm.running_mean")
    raw = batch_norm and not encoder["final_norm"]
    # MAE-priv has a norm after the pooling even if it classifies the class token, which only its stored options show.
    token_pooled = isinstance(options, dict) and bool(options.get("use_cls_token")) and encoder["class_token"]
    mean_pooled = not encoder["class_token"] if raw else norm_pooled and not token_pooled
    pooling: dict[str, Any] = {"global_pool": mean_pooled if global_pool is None else global_pool}
    if has("query_token"):
        pooling |= {"probe": "attentive", "linear_depth": count_blocks(stored.model, "attentive_blocks.")}
    elif batch_norm:
        pooling["probe"] = "raw" if raw else "attentive_no_parameter"
    else:
        pooling |= {"probe": "standard" if has("head.1.weight") else "none", "fc_norm": norm_pooled}
    return encoder | pooling
