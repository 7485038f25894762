"""Loading of weights into a classifier: a pre-trained encoder, or a whole trained classifier."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn

from plsc_mae import weights
from plsc_mae.config import ClassifyConfig
from plsc_mae.data.classes import ClassOrder
from plsc_mae.data.pixels import per_channel
from plsc_mae.errors import CheckpointError, flag
from plsc_mae.loading.class_names import head_to_keep
from plsc_mae.loading.completeness import BESIDE_THE_ENCODER, belongs_to, refuse_unsupported, require_complete
from plsc_mae.loading.encoder import newer_parts, stored_statistics
from plsc_mae.loading.positions import PositionFit
from plsc_mae.loading.training_config import stated_heads, trained_eps
from plsc_mae.methods import load_recipe
from plsc_mae.methods.classify import build_normalize
from plsc_mae.methods.label_kinds import KINDS, stored_kind
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.layers import LAYER_NORM_EPS
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights import Checkpoint, LoadReport
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects import detect
from plsc_mae.weights.dialects.base import Array, Dialect
from plsc_mae.weights.dialects.encoder import RELATIVE_TABLE, block_count
from plsc_mae.weights.folders import HALVES, IMAGENET

logger = logging.getLogger(__name__)


PROBE_HEAD_STD = 0.01


# Tensors that only probes have, in the names of all dialects.
_PROBE = (
    *("head.0.running_mean", "head.0._mean", "head.1.weight"),
    *("fc_norm.running_mean", "fc_norm._mean", "query_token"),
)


# PLSC's probes have a batch norm with an untrained scale and shift.
_UNTRAINED = {"head.0.weight": 1.0, "head.0.bias": 0.0}


def load_into_classifier(
    model: ImageClassifier,
    source: Checkpoint,
    *,
    norm_into_fc_norm: bool,
    classes: ClassOrder | None = None,
    names_file: str = "",
    new_head: bool = False,
    dry_run: bool = False,
) -> LoadReport:
    """Initialize a classifier with a checkpoint of pre-training or of another classifier.

    A head is loaded only if it fits the classes of the run, and its outputs are put into the order of `classes`; see
    `class_names.head_to_keep`. Learned position embeddings and relative position tables are resized to the classifier's
    grid; relative position tables stay at zero if the file has none.

    Args:
        model: the classifier.
        source: content of the file.
        norm_into_fc_norm: True to initialize the norm after mean pooling with the encoder's final norm, as
            Atten4Vis/CAE does; the MAEs do not.
        classes: classes of the run; None if they are unknown.
        names_file: text file with the names of the stored classifier's outputs, in place of those in the checkpoint.
        new_head: True to keep the initial head even if the file has one.
        dry_run: compare names, shapes and types only.

    Returns:
        The report of `weights.load`, with the dialect of the file as it was read.

    Raises:
        CheckpointError: the file cannot be used, its encoder is not that of the classifier, it holds a probe,
            or it has no head for the names of `names_file`.
        DataError: the file of names cannot be read, or does not fit the stored classifier.
    """
    if not dry_run:
        _warn_of_other_settings(model, source)
    stored, rules = based(source, model.num_heads)
    if probe := [name for name in _PROBE if name in stored.model]:
        raise CheckpointError(
            f"{stored.path} holds a probe ({probe[0]}) with its encoder; expected the checkpoint of pre-training that "
            "was probed, or a fine-tuned one"
        )
    classes = classes or ClassOrder()
    kept = None
    if model.probe == "none" and not new_head:
        kept = head_to_keep(stored, model.num_classes, classes, names_file)
    tensors = _fitted(model, stored.model, rules, norm_into_fc_norm, keep_head=kept is not None)
    fitted, fit = dataclasses.replace(stored, model=tensors), PositionFit(model, model.encoder, stored)
    report = weights.load(model, fitted, rules.name, resize=fit, dry_run=dry_run)
    require_encoder(model, model.encoder, report, stored, rules)
    fit.require_grid()
    if kept is not None and not dry_run:
        model.reorder_outputs(kept)
    return dataclasses.replace(report, dialect=detect(source.model) or report.dialect)


def load_classifier_weights(
    model: ImageClassifier,
    source: Checkpoint,
    *,
    resize: bool = False,
    by_options: bool = True,
) -> LoadReport:
    """Load all weights of a trained classifier, of plsc_mae or of another code base; return the report of loading.

    Args:
        model: the classifier, built with the options that it was trained with.
        source: content of the file.
        resize: True to resize position embeddings and relative position tables to the grid of `model`, and to convert
            the patch embedding to its channels.
        by_options: True if the user's options determined the network, False if the file did; see `require_complete`.

    Raises:
        CheckpointError: the file cannot be used, or its tensors are not those of the classifier.
    """
    stored, rules = based(source, model.num_heads)
    fit = PositionFit(model, model.encoder, stored) if resize else None
    report = weights.load(model, stored, rules.name, resize=fit)
    _check_positions(model.encoder, stored, rules)
    untrained = tuple(name for name in report.unexpected if _is_untrained(name, stored.model[name]))
    require_complete(model, report, str(stored.path), idle=untrained, part="classifier", by_options=by_options)
    if fit is not None:
        fit.require_grid()
    return report


def based(stored: Checkpoint, num_heads: int) -> tuple[Checkpoint, Dialect]:
    """Return (the file in the base naming of its dialect, the dialect); `num_heads` determines the order of rows.

    Raises:
        CheckpointError: no dialect has the tensors' names, their shapes fit no network of the dialect, or plsc_mae
            lacks a part of the network.
    """
    stored = decoded(stored, num_heads, 1)  # a classifier needs no decoder
    rules = recognize(stored.model, str(stored.path))
    refuse_unsupported(stored.model, rules, str(stored.path))
    return stored, rules


def read_start(config: ClassifyConfig, resumed: Path | None = None) -> Checkpoint | None:
    """Return the content of the file that a run starts from, None for random weights.

    Args:
        config: the options.
        resumed: checkpoint from which the run resumes; None without one.

    Raises:
        CheckpointError: the file cannot be read or used.
    """
    if resumed is not None:  # so that a resumed run does not need the file of --finetune
        return weights.read(resumed)
    return weights.read_network(config.finetune, config.model_key, config.model_prefix) if config.finetune else None


def parts_of_start(config: ClassifyConfig, start: Checkpoint | None = None) -> dict[str, Any]:
    """Return `encoder.newer_parts` of the file that a run starts from: encoder arguments that no option sets.

    The result is empty if the run starts from random weights.

    Args:
        config: the options.
        start: content of the file; None reads that of --finetune.

    Raises:
        CheckpointError: the file cannot be read, or holds no encoder that plsc_mae can build.
    """
    start = read_start(config) if start is None else start
    return {} if start is None else newer_parts(based(start, config.num_heads or 1)[0], config.image_size)


def warn_of_eps(encoder: VisionTransformer, stored: Checkpoint) -> None:
    """Warn if the weights were trained with a layer norm epsilon that differs from the encoder's."""
    trained, own = trained_eps(stored) or LAYER_NORM_EPS, encoder.blocks[0].norm1._epsilon
    if trained != own:
        logger.warning(
            "%s was trained with layer norms of eps %g, but the network has %g; give %s %g to keep it",
            *(stored.path, trained, own, flag("norm_eps"), trained),
        )


def _warn_of_other_settings(model: ImageClassifier, stored: Checkpoint) -> None:
    """Warn if a file states another epsilon or number of heads than the network has, because the features differ."""
    warn_of_eps(model.encoder, stored)
    trained = stated_heads(stored, "num_heads", model.encoder.embed_dim)
    if trained not in (None, model.num_heads):
        logger.warning(
            "%s was trained with %d attention heads, but the network has %d, so its features differ; give %s %d",
            *(stored.path, trained, model.num_heads, flag("num_heads"), trained),
        )


def warn_of_statistics(stored: Checkpoint, config: ClassifyConfig) -> None:
    """Warn if a Hugging Face folder states another normalization of the images than that of the run."""
    statistics, own = stored_statistics(stored), build_normalize(config)
    if statistics is None:
        return
    rows = [values.flatten().tolist() for values in (own.mean, own.std)]
    if not np.allclose(rows, [per_channel(values, config.channels) for values in statistics], atol=1e-4):
        option = "--imagenet_inception_mean_and_std"
        known = {HALVES: f"give {option}", IMAGENET: f"leave out {option}"}
        logger.warning(
            "%s was trained with images of mean %s and std %s, but this run normalizes them by %s and %s; %s",
            *(stored.path, list(statistics.mean), list(statistics.std)),
            *([round(value, 4) for value in row] for row in rows),
            known.get(statistics, "no option of this command gives these"),
        )


def _fitted(
    model: ImageClassifier, tensors: Mapping[str, Array], rules: Dialect, norm_into_fc_norm: bool, *, keep_head: bool
) -> dict[str, Array]:
    """Return the file's tensors in its dialect, some of them renamed to their places in the classifier.

    The head is dropped unless `keep_head` is true. If `norm_into_fc_norm`, the encoder's final norm becomes `fc_norm`
    where the file lacks that. A relative position table that all blocks share in the file is copied to every block that
    needs its own one.
    """
    fitted = dict(tensors)
    if not keep_head:
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


def require_encoder(
    model: nn.Layer,
    encoder: VisionTransformer,
    report: LoadReport,
    stored: Checkpoint,
    rules: Dialect,
    *,
    fresh: tuple[str, ...] = (),
) -> None:
    """Raise CheckpointError unless file and network have the same encoder.

    The file may lack computed position tables and the tensors beside the encoder, such as a head, a decoder or the mask
    token. It must have every relative position table of the network or no such table at all. It may have a final norm
    that the network lacks, because a classifier can normalize the mean of the patches instead.

    Args:
        model: the network that was loaded.
        encoder: the encoder of `model`.
        report: the result of loading.
        stored: the file, in the base naming of its dialect.
        rules: the dialect.
        fresh: names and name prefixes of further tensors that the file may lack.
    """
    _check_positions(encoder, stored, rules)
    found, depth = block_count(stored.model, rules), len(encoder.blocks)
    has_tables = any(name.endswith(RELATIVE_TABLE) for name in stored.model)
    beside = (*BESIDE_THE_ENCODER, *fresh)
    absent = {name for name in report.missing if not name.startswith("encoder.") or belongs_to(name, beside)}
    if not has_tables:
        absent |= {name for name in report.missing if name.endswith(RELATIVE_TABLE)}
    require_complete(
        model,
        report,
        str(stored.path),
        idle=(*BESIDE_THE_ENCODER, rules.foreign_name("encoder.norm.")),
        absent=absent,
        part="encoder" if found == depth else f"encoder, of {found} blocks where the network has {depth}",
    )


def _check_positions(encoder: VisionTransformer, stored: Checkpoint, rules: Dialect) -> None:
    """Raise CheckpointError if file and encoder have different kinds of fixed position embeddings.

    Files of MAE-priv contain the position table, and files of MAE-pytorch do not.
    """
    has_table = rules.foreign_name("encoder.pos_embed") in stored.model
    if has_table and encoder.positions == "sinusoid":
        raise CheckpointError(
            f"{stored.path} has a position table, but the network has MAE-pytorch's, which no file stores; for "
            f"MAE-priv's give {flag('method')} mae_priv (positions 'row first' of the network)"
        )
    fixed = encoder.positions in ("column first", "row first")
    if not has_table and fixed and encoder.cls_token is None:
        raise CheckpointError(
            f"{stored.path} has no position table, like files of MAE-pytorch; give {flag('method')} mae_pytorch "
            "(positions 'sinusoid' of the network)"
        )


def _is_untrained(name: str, value: Array) -> bool:
    return name in _UNTRAINED and bool(np.all(value == _UNTRAINED[name]))


def start_from_pretraining(
    model: ImageClassifier, config: ClassifyConfig, stored: Checkpoint, classes: ClassOrder | None = None
) -> LoadReport:
    """Load the encoder of a file and initialize the head; return the report of loading.

    Fine-tuning initializes the head as the method's recipe does, or keeps the file's head, see `load_into_classifier`;
    if the labels of the run or of the file are not classes, it always initializes the head. A probe draws its head with
    standard deviation PROBE_HEAD_STD.
    """
    recipe = load_recipe(config.method)
    warn_of_statistics(stored, config)
    report = load_into_classifier(
        model,
        stored,
        norm_into_fc_norm=recipe.norm_into_fc_norm,
        classes=classes,
        names_file=config.classes,
        new_head=KINDS[config.label_task].dense or stored_kind(stored.meta, stored.path).dense,
    )
    std = recipe.head_std if config.probe == "none" else PROBE_HEAD_STD
    if std is not None and "head.weight" not in report.matched:
        model.reset_head(std)
    return report
