"""Loading of weights into a classifier: a pre-trained encoder, or a whole trained classifier."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from paddle import nn

from plsc_mae import weights
from plsc_mae.config import ClassifyConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.loading.training_config import trained_eps
from plsc_mae.methods import load_recipe
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.layers import LAYER_NORM_EPS
from plsc_mae.models.pos_embed import resize_pos_embed
from plsc_mae.models.rel_pos_bias import MIN_RESIZED_SIDE, resize_relative_positions
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights import Checkpoint, LoadReport
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects import detect
from plsc_mae.weights.dialects.base import Array, Dialect
from plsc_mae.weights.dialects.encoder import RELATIVE_TABLE, block_count, position_side, relative_side

logger = logging.getLogger(__name__)


PROBE_HEAD_STD = 0.01


# Tensors that only probes have, in the names of all dialects.
_PROBE = (
    *("head.0.running_mean", "head.0._mean", "head.1.weight"),
    *("fc_norm.running_mean", "fc_norm._mean", "query_token"),
)


# Tensors that are no weights: computed tables, and counters that no code reads.
_COMPUTED = ("relative_position_index", "num_batches_tracked")


# PLSC's probes have a batch norm with an untrained scale and shift.
_UNTRAINED = {"head.0.weight": 1.0, "head.0.bias": 0.0}


def load_into_classifier(
    model: ImageClassifier,
    source: str | Path | Checkpoint,
    *,
    norm_into_fc_norm: bool,
    model_key: str | None = None,
    model_prefix: str | None = None,
) -> LoadReport:
    """Initialize a classifier with a checkpoint of pre-training or of another classifier.

    A head is loaded only if it has the same size. Learned position embeddings and relative position tables are resized
    to the classifier's grid; relative position tables that the file lacks stay at zero.

    Args:
        model: the classifier.
        source: the file, or its content.
        norm_into_fc_norm: True to initialize the norm after mean pooling with the encoder's final norm, as
            Atten4Vis/CAE does; the MAEs do not.
        model_key: key of the network in the file, see `weights.unwrap.choose_network`; unused with its content.
        model_prefix: prefix of the network's tensor names, likewise.

    Returns:
        The report, in the classifier's names.

    Raises:
        CheckpointError: the file cannot be read, is of another size, lacks a part of the encoder, has a part that the
            classifier lacks, or holds a probe.
    """
    if not isinstance(source, Checkpoint):
        source = weights.read_network(source, model_key or "", model_prefix or "")
    _warn_of_eps(model, source)
    stored, rules = _based(source, model.num_heads)
    if probe := [name for name in _PROBE if name in stored.model]:
        raise CheckpointError(
            f"{stored.path} holds a probe ({probe[0]}) with its encoder; expected the checkpoint of pre-training that "
            "was probed, or a fine-tuned one"
        )
    tensors = _fitted(model, stored.model, rules, norm_into_fc_norm)
    fitted = dataclasses.replace(stored, model=tensors)
    report = weights.load(model, fitted, rules.name, resize=resize_to(model.encoder))
    _require_encoder(model, report, stored, rules)
    return dataclasses.replace(report, dialect=detect(source.model) or report.dialect)


def load_classifier_weights(
    model: ImageClassifier,
    source: str | Path | Checkpoint,
    *,
    model_key: str | None = None,
    model_prefix: str | None = None,
    resize: bool = False,
) -> LoadReport:
    """Load all weights of a trained classifier, of plsc_mae or of another code base.

    Args:
        model: the classifier, built with the options that it was trained with.
        source: the file, or its content.
        model_key: key of the network in the file, see `weights.unwrap.choose_network`; unused with its content.
        model_prefix: prefix of the network's tensor names, likewise.
        resize: True to resize position embeddings and relative position tables to the grid of `model`.

    Raises:
        CheckpointError: the file cannot be read, lacks a tensor, has a surplus one, or has one of another size.
    """
    if not isinstance(source, Checkpoint):
        source = weights.read_network(source, model_key or "", model_prefix or "")
    stored, rules = _based(source, model.num_heads)
    report = weights.load(model, stored, rules.name, resize=resize_to(model.encoder) if resize else None)
    _check_positions(model.encoder, stored, rules)
    surplus = [name for name in report.unexpected if not _is_idle(name, stored.model[name])]
    missing = [name for name in report.missing if name not in _fixed_tables(model)]
    if surplus or missing:
        raise CheckpointError(
            f"{stored.path} holds another classifier: {_counts(report, missing, surplus)}; give the model and the "
            "options that it was trained with"
        )
    return report


def resize_to(encoder: VisionTransformer) -> Callable[[str, Array, list[int]], Array | None]:
    """Return a function for `weights.load` that resizes position tables of a square grid to the encoder's grid."""

    def resize(name: str, value: Array, shape: list[int]) -> Array | None:
        table = value.astype(np.float32)
        if table.ndim != len(shape) or table.shape[-1] != shape[-1]:
            return None
        if name.endswith("pos_embed"):
            side = position_side(table.shape[1], encoder.num_prefix_tokens)
            return None if side is None else resize_pos_embed(table, (side, side), encoder.grid)
        side = relative_side(len(table)) if name.endswith(RELATIVE_TABLE) else None
        if side is None or side < MIN_RESIZED_SIDE:
            return None
        return resize_relative_positions(table, (side, side), encoder.grid)

    return resize


def require_weights(model: nn.Layer, report: LoadReport, path: str) -> None:
    """Check that a file had every weight of a network; fixed tables may be missing.

    Raises:
        CheckpointError: a weight is missing.
    """
    trainable = {name for name, _ in model.named_parameters()}
    missing = [name for name in report.missing if name in trainable]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors, the first {missing[0]}: "
            f"{_counts(report, missing, report.unexpected)}"
        )


def _based(stored: Checkpoint, num_heads: int) -> tuple[Checkpoint, Dialect]:
    """Return a file's network in the base naming of its dialect, with rows in the order that `num_heads` implies."""
    stored = decoded(stored, num_heads, 1)  # a classifier needs no decoder
    return stored, recognize(stored.model, str(stored.path))


def _warn_of_eps(model: ImageClassifier, stored: Checkpoint) -> None:
    """Warn if the weights were trained with another layer norm epsilon than the classifier's."""
    trained, own = trained_eps(stored) or LAYER_NORM_EPS, model.encoder.blocks[0].norm1._epsilon
    if trained != own:
        logger.warning(
            "%s was trained with layer norms of eps %g, but the classifier has %g; give --norm_eps %g to keep it",
            *(stored.path, trained, own, trained),
        )


def _fitted(
    model: ImageClassifier, tensors: Mapping[str, Array], rules: Dialect, norm_into_fc_norm: bool
) -> dict[str, Array]:
    """Return the file's tensors, with those moved that the classifier keeps elsewhere; names keep the file's dialect.

    A head for another number of classes is dropped. If `norm_into_fc_norm`, the encoder's final norm becomes `fc_norm`.
    A shared relative position table becomes the table of every block that has its own.
    """
    fitted = dict(tensors)
    if "head.bias" in fitted and len(fitted["head.bias"]) != model.num_classes:
        fitted = {name: value for name, value in fitted.items() if name not in ("head.weight", "head.bias")}
    copies = {}
    if norm_into_fc_norm and isinstance(model.fc_norm, nn.LayerNorm):
        copies = {f"fc_norm.{part}": f"encoder.norm.{part}" for part in ("weight", "bias")}
    for i, block in enumerate(model.encoder.blocks):
        if block.attn.rel_pos_bias is not None:
            copies[f"encoder.blocks.{i}.attn.rel_pos_bias.{RELATIVE_TABLE}"] = f"encoder.rel_pos_bias.{RELATIVE_TABLE}"
    used = set()
    for ours, source in copies.items():
        target, origin = rules.foreign_name(ours), rules.foreign_name(source)
        if origin in fitted and target not in fitted:
            fitted[target] = fitted[origin]
            used.add(origin)
    return {name: value for name, value in fitted.items() if name not in used}


def _require_encoder(model: ImageClassifier, report: LoadReport, stored: Checkpoint, rules: Dialect) -> None:
    """Check that file and classifier have the same encoder; the file may lack all relative position tables."""
    found, depth = block_count(stored.model, rules), len(model.encoder.blocks)
    has_tables = any(name.endswith(RELATIVE_TABLE) for name in stored.model)
    wanted = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    missing = [n for n in report.missing if n in wanted and (has_tables or not n.endswith(RELATIVE_TABLE))]
    parts = tuple(rules.foreign_name(f"encoder.{part}") for part in ("blocks.", "cls_token", "rel_pos_bias."))
    surplus = [n for n in report.unexpected if n.startswith(parts) and not n.endswith(_COMPUTED)]
    if missing or surplus:
        what = f"{found} blocks where the network has {depth}" if found != depth else "another encoder"
        raise CheckpointError(
            f"{stored.path} holds {what}: {_counts(report, missing, surplus)}; give the model and the options that it "
            "was trained with"
        )
    _check_positions(model.encoder, stored, rules)


def _check_positions(encoder: VisionTransformer, stored: Checkpoint, rules: Dialect) -> None:
    """Check the kind of fixed position embedding: MAE-priv's files store it, MAE-pytorch's do not."""
    has_table = rules.foreign_name("encoder.pos_embed") in stored.model
    if has_table and encoder.positions == "sinusoid":
        raise CheckpointError(
            f"{stored.path} has a position table, but the network has MAE-pytorch's, which no file stores; for "
            "MAE-priv's give --method mae_priv (positions 'row first' of the network)"
        )
    fixed = encoder.positions in ("column first", "row first")
    if not has_table and fixed and encoder.cls_token is None:
        raise CheckpointError(
            f"{stored.path} has no position table, like files of MAE-pytorch; give --method mae_pytorch "
            "(positions 'sinusoid' of the network)"
        )


def _fixed_tables(model: nn.Layer) -> set[str]:
    return {name for name, _ in model.named_buffers() if name.endswith("pos_embed")}


def _is_idle(name: str, value: Array) -> bool:
    return name.endswith(_COMPUTED) or (name in _UNTRAINED and bool(np.all(value == _UNTRAINED[name])))


def _counts(report: LoadReport, missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return a text that counts matched, missing and unexpected tensors and gives the first names."""
    return str(LoadReport(report.dialect, report.matched, list(missing), list(unexpected), report.resized))


def start_from_pretraining(model: ImageClassifier, config: ClassifyConfig) -> LoadReport:
    """Load the encoder of `config.finetune`, and initialize the head as the method's recipe does.

    Raises:
        CheckpointError: the file does not hold that encoder.
    """
    recipe = load_recipe(config.method)
    report = load_into_classifier(
        model,
        config.finetune,
        norm_into_fc_norm=recipe.norm_into_fc_norm,
        model_key=config.model_key,
        model_prefix=config.model_prefix,
    )
    std = recipe.head_std if config.probe == "none" else PROBE_HEAD_STD
    if std is not None and "head.weight" not in report.matched:
        model.reset_head(std)
    return report
