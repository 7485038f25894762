"""A trained classifier as tools use it: in evaluation mode, frozen, with what its images and classes need."""

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
from plsc_mae.loading.classifier_weights import load_classifier_weights
from plsc_mae.loading.encoder import infer_encoder_arguments, normalization
from plsc_mae.loading.training_config import trained_eps
from plsc_mae.methods.classify import build_classifier, build_normalize, validation_transform
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded, recognize, select
from plsc_mae.weights.dialects.base import count_blocks, tensor_of_rank

_BIASES = ("head.bias", "head.1.bias")  # of classifiers and of probes, in every dialect
_SWEEP = "head.linears."


class LoadedClassifier(NamedTuple):
    """A classifier, what its images go through, its classes, and one line that says where its weights are from."""

    network: ImageClassifier
    normalize: Normalize
    transform: Transform  # of validation images; draws nothing
    classes: tuple[str, ...]
    origin: str


def load_classifier(
    path: str,
    *,
    model_key: str = "",
    classes: str = "",
    num_heads: int | None = None,
    input_size: tuple[int, ...] | None = None,
    global_pool: bool | None = None,
) -> LoadedClassifier:
    """Build the classifier of a checkpoint of fine-tuning or probing: ours by its options, others by their tensors.

    Args:
        path: the checkpoint, of this suite or of another.
        model_key: key of the weights in it, as "model_ema"; found by content when empty.
        classes: text file with the name of a class on every line, in place of the checkpoint's names.
        num_heads: attention heads, for a foreign file of unpublished width.
        input_size: image side, or height and width, in place of the checkpoint's; positions are resized.
        global_pool: whether patch tokens are averaged, where a foreign file tells it wrongly.

    Raises:
        CheckpointError: the file cannot be read, or holds no classifier or one that does not fit its own options.
        ConfigError: unknown heads, or an image size that does not fit.
        DataError: the file of names cannot be read, or has another number of them.
    """
    stored = weights.read(path)
    if model_key:
        stored = select(stored, model_key)
    eps = trained_eps(stored)
    stored = decoded(stored, num_heads, 1)  # the order of a decoder's rows is of no matter
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
    return LoadedClassifier(network, normalize, transform, names, f"{path}: {report}, {num_classes} classes")


def open_classifier(config: PredictConfig | ExplainConfig) -> LoadedClassifier:
    """Load the classifier that a command's options name; raises as `load_classifier`."""
    return load_classifier(
        config.model_path,
        model_key=config.model_key,
        classes=config.classes,
        num_heads=config.num_heads,
        input_size=config.input_size,
        global_pool=config.global_pool,
    )


def _count_classes(stored: Checkpoint) -> int:
    """The length of the head's bias."""
    found = (tensor_of_rank(stored.model, name, 1, str(stored.path)) for name in _BIASES if name in stored.model)
    head = next(found, None)
    if head is not None:
        return len(head)
    if any(name.startswith(_SWEEP) for name in stored.model):
        raise CheckpointError(
            f"{stored.path} holds the classifiers of --lr_sweep, one for each rate; train the best rate's alone"
        )
    raise CheckpointError(
        f"{stored.path} holds no classifier: it has no head; expected a checkpoint of `plsc-mae finetune` or "
        "`plsc-mae linprobe`, or a fine-tuned or probed file of facebookresearch/mae, CAE, PLSC, MAE-priv or "
        "MAE-pytorch"
    )


def _by_options(
    stored: Checkpoint, num_classes: int, given: Mapping[str, Any]
) -> tuple[ImageClassifier, Normalize, Transform]:
    """What the options stored by this suite make."""
    config = from_mapping(stored.meta["args"], PHASES[stored.meta["phase"]], str(stored.path))
    config = dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})
    return build_classifier(config, num_classes), build_normalize(config), validation_transform(config)


def _arguments(
    stored: Checkpoint, num_heads: int | None, input_size: tuple[int, ...] | None, global_pool: bool | None
) -> dict[str, Any]:
    """Arguments of `ImageClassifier` by the tensors of another code base.

    What is pooled is told by the norm behind it, which all but MAE-priv have for mean pooling only. MAE-priv has a
    class token where it classifies one, and says so in the options stored beside the weights.
    """
    rules, options = recognize(stored.model, str(stored.path)), stored.meta.get("args")
    encoder = infer_encoder_arguments(stored, num_heads, input_size)

    def has(name: str) -> bool:
        return rules.foreign_name(name) in stored.model

    norm_pooled, batch_norm = has("fc_norm.weight"), has("fc_norm.running_mean")
    raw = batch_norm and not encoder["final_norm"]
    told = isinstance(options, dict) and bool(options.get("use_cls_token"))
    mean_pooled = not encoder["class_token"] if raw else norm_pooled and not (told and encoder["class_token"])
    pooling: dict[str, Any] = {"global_pool": mean_pooled if global_pool is None else global_pool}
    if has("query_token"):
        pooling |= {"probe": "attentive", "linear_depth": count_blocks(stored.model, "attentive_blocks.")}
    elif batch_norm:
        pooling["probe"] = "raw" if raw else "attentive_no_parameter"
    else:
        pooling |= {"probe": "standard" if has("head.1.weight") else "none", "fc_norm": norm_pooled}
    return encoder | pooling


def _stored_names(stored: Checkpoint, count: int) -> tuple[str, ...]:
    """The checkpoint's names; classes without one are called by their number."""
    names = [str(name) for name in stored.meta.get("classes") or ()][:count]
    return (*names, *(str(number) for number in range(len(names), count)))


def _read_names(path: str, count: int) -> tuple[str, ...]:
    try:
        names = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise DataError(f"cannot read the class names of {path}: {reason}") from None
    if len(names) != count:
        raise DataError(f"--classes {path} has {len(names)} names, and the classifier {count} classes; one a line")
    return tuple(name.strip() for name in names)
