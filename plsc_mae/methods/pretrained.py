"""What a checkpoint of pre-training holds, of this suite or of another: its options, its encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from plsc_mae import weights
from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.methods import load_method
from plsc_mae.models.vit import VisionTransformer
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


def load_encoder(path: str, num_heads: int | None = None, **replaced: Any) -> tuple[VisionTransformer, LoadReport]:
    """Build the encoder that a checkpoint of pre-training holds and load it, in evaluation mode.

    Args:
        path: the file.
        num_heads: attention heads, for a foreign file of unpublished width.
        replaced: see `training_config`.

    Raises:
        CheckpointError: the file cannot be read, or lacks a part of the encoder.
        ConfigError: see `training_config`.
    """
    stored = weights.read(path)
    config = training_config(stored, {"num_heads": num_heads}, **replaced)
    encoder = load_method(config.method).build_encoder(config)
    report = weights.load(encoder, stored, prefix="encoder.")
    require_weights(encoder, report, path)
    encoder.eval()
    return encoder, report


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
            for key in heads:
                arguments[key] = heads[key] or arguments[key]
                if arguments[key] is None:
                    raise ConfigError(f"{stored.path} does not tell its number of heads; give it with --{key}")
            return method.config_of(arguments)
    raise CheckpointError(
        f"{stored.path} does not tell what network it holds; expected a pre-training checkpoint of this "
        "suite, facebookresearch/mae, Atten4Vis/CAE or PLSC"
    )
