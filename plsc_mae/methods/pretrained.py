"""What a checkpoint of pre-training holds, of this suite or of another: its options, its encoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from plsc_mae import weights
from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.methods import load_method
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.pos_embed import resize_pos_embed
from plsc_mae.weights import Checkpoint, LoadReport


def training_config(stored: Checkpoint, heads: Mapping[str, int | None], **replaced: Any) -> PretrainConfig:
    """The options that a checkpoint was trained with, as far as it tells.

    Args:
        stored: the file as `weights.read` gives it.
        heads: the numbers of heads that are needed, which no shape tells: by name what is given for a foreign file of
            unpublished width, else None.
        replaced: options that replace the checkpoint's; None leaves them.

    Raises:
        CheckpointError: the file does not tell what network it holds.
        ConfigError: an option that its method does not have, or one that does not fit; unknown heads.
    """
    if "method" in stored.meta and "args" in stored.meta:
        trained = from_mapping(stored.meta["args"], PRETRAIN, str(stored.path))
    else:
        trained = _read_off(stored, heads)
    known = {field.name for field in dataclasses.fields(trained)}
    given = {name: value for name, value in replaced.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(f"--{name} is no option of method '{trained.method}', which {stored.path} is of")
    return dataclasses.replace(trained, resume="", auto_resume=False, **given)


def load_into_classifier(model: ImageClassifier, path: str, *, norm_into_fc_norm: bool) -> LoadReport:
    """Start a classifier from the encoder that a checkpoint of pre-training holds; the head stays as it is.

    A learned position table is resized to the classifier's grid. Relative positions, which pre-training lacks, stay at
    zero.

    Args:
        model: the classifier.
        path: the file.
        norm_into_fc_norm: whether the norm behind mean pooling starts from the encoder's final norm, as Atten4Vis/CAE
            has it; facebookresearch/mae starts afresh.

    Raises:
        CheckpointError: the file cannot be read, is of another size, or lacks a part of the encoder.
    """
    stored = weights.read(path)
    report = weights.load(model.encoder, stored, prefix="encoder.", resize=_resize_positions)
    fresh = ".rel_pos_bias.relative_position_bias_table"
    report.missing = [name for name in report.missing if not f".{name}".endswith(fresh)]
    require_weights(model.encoder, report, path)
    if model.mean_pooled and norm_into_fc_norm:
        weights.load(model.fc_norm, stored, prefix="encoder.norm.")
    return report


def _resize_positions(name: str, value: np.ndarray, shape: list[int]) -> np.ndarray | None:
    """A learned table [1, 1 + L, D] of a square grid for another square one."""
    if not name.endswith("pos_embed") or value.shape[2] != shape[2]:
        return None
    old, new = (math.isqrt(count - 1) for count in (value.shape[1], shape[1]))
    if (old * old, new * new) != (value.shape[1] - 1, shape[1] - 1):
        return None
    return np.asarray(resize_pos_embed(value, (old, old), (new, new)))


def require_weights(model: Any, report: LoadReport, path: str) -> None:
    """Check that a file had every weight of a network; fixed tables need not be in it.

    Raises:
        CheckpointError: it had not.
    """
    trainable = {name for name, _ in model.named_parameters()}
    missing = [name for name in report.missing if name in trainable]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} tensors, the first {missing[0]}")


def _read_off(stored: Checkpoint, heads: Mapping[str, int | None]) -> PretrainConfig:
    """The options of a foreign file, by the shapes of its tensors."""
    for name in PRETRAIN:
        method = load_method(name)
        if stored.dialect in method.foreign:
            arguments = method.foreign[stored.dialect](stored.model, str(stored.path))
            if "decoder_num_heads" in heads and arguments["decoder_embed_dim"] is None:
                raise CheckpointError(
                    f"{stored.path} holds an encoder only; redrawing needs the decoder too: take the file with the "
                    "full autoencoder (facebookresearch/mae calls it mae_visualize_* or mae_pretrain_*_full) or a "
                    "checkpoint of pre-training"
                )
            for key in heads:
                arguments[key] = heads[key] or arguments[key]
                if arguments[key] is None:
                    raise ConfigError(f"{stored.path} does not tell its number of heads; give it with --{key}")
            return method.config_of(arguments)
    raise CheckpointError(
        f"{stored.path} does not tell what network it holds; expected a pre-training checkpoint of this "
        "suite, facebookresearch/mae, Atten4Vis/CAE or PLSC"
    )
