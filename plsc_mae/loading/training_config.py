"""The options that a checkpoint of pre-training was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Method
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded
from plsc_mae.weights.dialects import NATIVE, detect, find_dialect
from plsc_mae.weights.dialects.cae import PLSC_CAE


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
        decoder_num_heads = heads.get("decoder_num_heads", 1)  # of no matter where it is not asked for
        sized = decoded(stored, heads.get("num_heads"), decoder_num_heads)
        trained = _read_off(sized, heads, trained_eps(stored))
    known = {field.name for field in dataclasses.fields(trained)}
    given = {name: value for name, value in replaced.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(f"--{name} is no option of method '{trained.method}', which {stored.path} is of")
    return dataclasses.replace(trained, resume="", auto_resume=False, **given)


def trained_eps(stored: Checkpoint) -> float | None:
    """The eps of the blocks' layer norms that a file was trained with, where it is another than 1e-6 and told."""
    options, name = stored.meta.get("args"), detect(stored.model)
    if isinstance(options, dict) and options.get("norm_eps"):
        return float(options["norm_eps"])
    return find_dialect(name).norm_eps if name else None


def _read_off(stored: Checkpoint, heads: Mapping[str, int | None], norm_eps: float | None) -> PretrainConfig:
    """The options of a file of weights alone, or of another code base, by the shapes of its tensors."""
    stored, method_of_ours = _weights_alone(stored)
    for name in PRETRAIN:
        method = load_method(name)
        if name == method_of_ours or stored.dialect in method.foreign:
            arguments = _arguments(method, stored)
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
            return method.config_of(arguments | _told(stored, arguments) | {"norm_eps": norm_eps})
    raise CheckpointError(
        f"{stored.path} does not tell what network it holds; expected a pre-training checkpoint of this "
        "suite or of another that `plsc-mae weights list` names"
    )


def _weights_alone(stored: Checkpoint) -> tuple[Checkpoint, str]:
    """For weights in our own names without options beside them: the file, and the method whose network they make up.

    CAE's come back under PLSC's names, which are of our layouts too.
    """
    if stored.dialect != NATIVE.name:
        return stored, ""
    if "regressor.norm.weight" in stored.model:
        renamed = {PLSC_CAE.foreign_name(name): value for name, value in stored.model.items()}
        return dataclasses.replace(stored, model=renamed, dialect=PLSC_CAE.name), ""
    if "encoder.blocks.0.attn.q_bias" not in stored.model:
        return stored, "mae"
    return stored, "mae_priv" if "decoder.embed.bias" in stored.model else "mae_pytorch"


def _arguments(method: Method, stored: Checkpoint) -> dict[str, Any]:
    """Read a network's arguments off its tensors.

    Raises:
        CheckpointError: a part is missing, or a tensor has a shape that no network gives it.
    """
    infer = method.foreign.get(stored.dialect) or next(iter(method.foreign.values()))
    return infer(stored.model, find_dialect(stored.dialect), str(stored.path))


# What others call options that tensors do not tell.
_TOLD = {"norm_pix_loss": ("norm_pix_loss", "normlize_target"), "mask_ratio": ("mask_ratio",)}


def _told(stored: Checkpoint, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run that another code base stored beside its weights: an argparse.Namespace, read as plain data.

    The image size among them counts only where the tensors do not tell it.
    """
    options = stored.meta.get("args")
    if not isinstance(options, dict):
        return {}
    found = {ours: next((options[name] for name in names if name in options), None) for ours, names in _TOLD.items()}
    told = {name: value for name, value in found.items() if value is not None}
    if arguments["img_size"] is None and options.get("input_size"):
        told["img_size"] = options["input_size"]
    return told
