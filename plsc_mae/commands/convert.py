"""`plsc-mae weights convert`: writes a weight file, or only its encoder, for another code base."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from paddle import nn

from plsc_mae import weights
from plsc_mae.config.weights import WeightsConvertConfig
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.files import atomic_replacement
from plsc_mae.loading.contents import CLASSIFIER, ENCODER, base_of, kind_of, method_of_kind
from plsc_mae.loading.encoder import stored_statistics
from plsc_mae.loading.networks import holding_network, open_network
from plsc_mae.loading.positions import PositionFit
from plsc_mae.loading.training_config import trained_eps
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights import Checkpoint, LoadReport
from plsc_mae.weights.convert import POSITION_TABLE
from plsc_mae.weights.dialects import find_dialect
from plsc_mae.weights.dialects.huggingface import config_of, sizes_of
from plsc_mae.weights.write import SUFFIXES
from plsc_mae.wording import counted

HEADED = ("libai",)  # dialects whose order of rows depends on the number of heads


def run(config: WeightsConvertConfig) -> None:
    """Read a file, write its network in another dialect, and report what was left out.

    Raises:
        CheckpointError: the file cannot be read, lacks a tensor or has position embeddings of a grid that is not
            square, or the new file cannot be written.
        ConfigError: the dialect is unknown or cannot hold the network, the new file exists and must not be replaced,
            or an option is missing or does not fit.
    """
    find_dialect(config.dialect)
    out = Path(config.out)
    with_settings = config.dialect == "huggingface" and out.suffix not in SUFFIXES
    file = out / "model.safetensors" if with_settings else out
    for written in (file, file.with_name("config.json")) if with_settings else (file,):
        if os.path.lexists(written) and not config.overwrite:
            raise ConfigError(f"{written} exists; name another file, or give --overwrite")
    stored = weights.read_network(config.path, config.model_key, config.model_prefix)
    beside = sorted({name.partition("/")[0] for name in stored.tensors if "/" in name})
    if len(beside) > 1 and file.exists() and file.samefile(config.path):
        raise ConfigError(
            f"{file} is the file that is read; of its {', '.join(beside)}, only the network would remain; "
            "name another file"
        )
    kind = ENCODER if config.encoder else kind_of(base_of(stored))
    heads = (config.num_heads, config.decoder_num_heads)
    if with_settings or config.dialect in HEADED:
        network = open_network(stored, kind, *heads, any_grid=True, in_chans=config.in_chans)
    else:
        network = holding_network(stored, kind, *heads, in_chans=config.in_chans)
    report = _checked(network, stored, kind, convert_channels=config.in_chans is not None)
    settings = _settings(network, kind, config.path) if with_settings else None
    weights.save(network, file, config.dialect)
    if settings is not None:
        _write_settings(file.with_name("config.json"), settings)
    print(f"{file}: {counted(len(report.matched), 'tensor')} of {config.path} ({stored.dialect}) as {config.dialect}")
    differing = {"left out": report.unexpected, "not in the file, written as computed": report.missing}
    for what, names in differing.items():
        if names:
            print(f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
    if len(beside) > 1:
        print(f"of {', '.join(beside)}, only the network is converted")
    if lost := _lost_settings(stored, kind, config.dialect, with_settings=with_settings):
        print(f"not stored in the new file: {', '.join(lost)}")


def _lost_settings(stored: Checkpoint, kind: str, dialect: str, *, with_settings: bool) -> list[str]:
    """Return descriptions of settings in a file that the converted file cannot hold."""
    lost = []
    names, eps = stored.meta.get("classes"), trained_eps(stored)
    if kind == CLASSIFIER and isinstance(names, list) and names:
        lost.append(f"the names of {counted(len(names), 'class')}")
    if stored_statistics(stored) is not None:
        lost.append("mean and std of the images")
    if eps and not with_settings and eps != find_dialect(dialect).norm_eps:
        lost.append(f"eps {eps:g} of the layer norms")
    return lost


def _checked(network: nn.Layer, stored: Checkpoint, kind: str, *, convert_channels: bool) -> LoadReport:
    """Load `stored` into `network` and return the report; raise CheckpointError if a position grid is not square."""
    encoder = getattr(network, "encoder", network)
    fit = PositionFit(network, encoder, stored, silent=True) if convert_channels else None
    report = weights.load(network, stored, prefix="encoder." if kind == ENCODER else "", resize=fit)
    tables = [name for name in report.resized if name.endswith(POSITION_TABLE)]
    if tables:
        raise CheckpointError(
            f"{stored.path} holds position embeddings of a grid that is not square ({', '.join(tables)}); "
            "only files of square images can be converted"
        )
    return report


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    try:
        with atomic_replacement(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}; the weights beside it were") from error


def _settings(network: nn.Layer, kind: str, path: str) -> dict[str, Any]:
    """Return the content of config.json for a Hugging Face folder; refuse classifiers and rectangular images."""
    if isinstance(network, ImageClassifier):
        raise ConfigError(
            f"{path} holds a classifier, but a Hugging Face folder can hold autoencoders and encoders only; give "
            "--encoder, or name a file with a suffix"
        )
    encoder: VisionTransformer = getattr(network, "encoder", network)
    if encoder.grid[0] != encoder.grid[1]:
        raise ConfigError(
            f"{path} holds a network for rectangular images, but the config.json of Hugging Face has one image size; "
            "name a file with a suffix"
        )
    method = method_of_kind(kind)
    decoder = {} if method is None else method.huggingface_settings(network)
    return config_of(sizes_of(encoder) | decoder, bool(decoder))
