"""Trained classifiers for the tools, frozen and in evaluation mode, with their transform and class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plsc_mae import weights
from plsc_mae.config import PHASES
from plsc_mae.config.resolve import from_mapping
from plsc_mae.config.tools import ExplainConfig, PredictConfig
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import Transform
from plsc_mae.errors import CheckpointError, DataError
from plsc_mae.file_kinds import require_text
from plsc_mae.loading.classifier_weights import load_classifier_weights
from plsc_mae.loading.encoder import infer_encoder_arguments, normalization
from plsc_mae.loading.training_config import trained_eps
from plsc_mae.methods.classify import build_classifier, build_normalize, validation_transform
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.names import escape_name
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects.base import count_blocks, tensor_of_rank

_BIASES = ("head.bias", "head.1.bias")  # of classifiers and of probes, in every dialect
_SWEEP = "head.linears."


class LoadedClassifier(NamedTuple):
    """A classifier, its normalization and transform, its class names, and a line about the origin of its weights."""

    network: ImageClassifier
    normalize: Normalize
    transform: Transform  # of validation images; not random
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
) -> LoadedClassifier:
    """Build and load the classifier of a checkpoint, from plsc_mae's stored options or else from its tensors.

    Args:
        source: the checkpoint, of plsc_mae or of another code base, or its content.
        model_key: key of the weights in it, such as "model_ema"; found by content when empty.
        model_prefix: prefix of the network's tensor names, likewise.
        classes: text file with one class name per line, in place of the checkpoint's names.
        num_heads: attention heads, if the file does not determine them.
        input_size: image side, or height and width, in place of the checkpoint's; positions are resized.
        global_pool: True to classify the mean of the patch tokens, False the class token; None: as the file suggests.

    Raises:
        CheckpointError: the file cannot be read, holds no classifier, or holds one that does not fit its own options.
        ConfigError: the number of heads is unknown, or an image size does not fit.
        DataError: the file of names cannot be read, or has another number of names.
    """
    stored = source if isinstance(source, Checkpoint) else weights.read_network(source, model_key, model_prefix)
    eps = trained_eps(stored)
    stored = decoded(stored, num_heads, 1)  # classifiers have no decoder
    num_classes = _count_classes(stored)
    given = {"num_heads": num_heads, "input_size": input_size, "global_pool": global_pool}
    if stored.meta.get("phase") in PHASES and "args" in stored.meta:
        network, normalize, transform = _by_options(stored, num_classes, given)
    else:
        arguments = _arguments(stored, num_heads, input_size, global_pool) | ({"norm_eps": eps} if eps else {})
        network = ImageClassifier(num_classes=num_classes, **arguments)
        normalize, transform = normalization(stored), evaluation_transform(network.encoder.img_size)
    report = load_classifier_weights(network, stored, resize=input_size is not None)
    network.eval()
    for parameter in network.parameters():
        parameter.stop_gradient = True
    names = _read_names(classes, num_classes) if classes else _stored_names(stored, num_classes)
    return LoadedClassifier(network, normalize, transform, names, f"{stored.path}: {report}, {num_classes} classes")


def open_classifier(config: PredictConfig | ExplainConfig) -> LoadedClassifier:
    """Load the classifier that a command's options name; raise as `load_classifier` does."""
    return load_classifier(
        config.model_path,
        model_key=config.model_key,
        model_prefix=config.model_prefix,
        classes=config.classes,
        num_heads=config.num_heads,
        input_size=config.input_size,
        global_pool=config.global_pool,
    )


def _count_classes(stored: Checkpoint) -> int:
    """Return the number of classes, which is the length of the head's bias."""
    found = (tensor_of_rank(stored.model, name, 1, str(stored.path)) for name in _BIASES if name in stored.model)
    head = next(found, None)
    if head is not None:
        return len(head)
    if any(name.startswith(_SWEEP) for name in stored.model):
        raise CheckpointError(
            f"{stored.path} holds the classifiers of --lr_sweep, one for each rate; train the best rate alone"
        )
    raise CheckpointError(
        f"{stored.path} holds no classifier: it has no head; expected a checkpoint of `plsc-mae finetune` or "
        "`plsc-mae linprobe`, or a fine-tuned or probed file of facebookresearch/mae, CAE, PLSC, MAE-priv or "
        "MAE-pytorch; if the classifier is another part of the file, choose it with --model_key or --model_prefix"
    )


def _by_options(
    stored: Checkpoint, num_classes: int, given: Mapping[str, Any]
) -> tuple[ImageClassifier, Normalize, Transform]:
    """Build (network, normalization, transform) from the options that plsc_mae stored in its checkpoint."""
    config = from_mapping(stored.meta["args"], PHASES[stored.meta["phase"]], str(stored.path))
    config = dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})
    return build_classifier(config, num_classes), build_normalize(config), validation_transform(config)


def _arguments(
    stored: Checkpoint, num_heads: int | None, input_size: tuple[int, ...] | None, global_pool: bool | None
) -> dict[str, Any]:
    """Infer the arguments of `ImageClassifier` from the tensors of another code base.

    A norm after the pooling implies mean pooling. MAE-priv is the exception: there, stored options state whether the
    class token is classified.
    """
    rules, options = recognize(stored.model, str(stored.path)), stored.meta.get("args")
    encoder = infer_encoder_arguments(stored, num_heads, input_size)

    def has(name: str) -> bool:
        return rules.foreign_name(name) in stored.model

    norm_pooled, batch_norm = has("fc_norm.weight"), has("fc_norm.running_mean")
    raw = batch_norm and not encoder["final_norm"]
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


def _stored_names(stored: Checkpoint, count: int) -> tuple[str, ...]:
    """Return the class names in the checkpoint; the name of a class without one is its number."""
    names = [str(name) for name in stored.meta.get("classes") or ()][:count]
    return (*names, *(str(number) for number in range(len(names), count)))


def _read_names(path: str, count: int) -> tuple[str, ...]:
    """Read one class name per line; names that are not UTF-8 are escaped as those of folders are."""
    try:
        require_text(path, f"--classes {path}", "a text file with one class name per line", DataError)
        names = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape").rstrip().splitlines()
    except OSError as error:
        raise DataError(f"cannot read the class names of --classes {path}: {error.strerror}") from None
    if len(names) != count:
        raise DataError(
            f"--classes {path} has {len(names)} names; expected {count}, one per line for each class of the classifier"
        )
    return tuple(escape_name(name.strip()) for name in names)
