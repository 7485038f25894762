"""The options that a checkpoint of pre-training was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from paddle import nn

from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.positions import computed_grid
from plsc_mae.methods import load_methods
from plsc_mae.methods.contract import Method
from plsc_mae.models.registry import VARIANTS
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded
from plsc_mae.weights.dialects import detect, find_dialect


def training_config(stored: Checkpoint, heads: Mapping[str, int | None], **replaced: Any) -> PretrainConfig:
    """Return the options that a checkpoint was trained with: those that plsc_mae stored, else inferred ones.

    Args:
        stored: the file as `weights.read` returns it.
        heads: `num_heads` and, if the caller needs the decoder, `decoder_num_heads`; a value is None if the user gave
            no number. They are used for files without plsc_mae's options, many of which do not determine the heads.
        replaced: options that replace the checkpoint's; a value of None keeps the checkpoint's. `resume` and
            `auto_resume` are always switched off.

    Raises:
        CheckpointError: the network of the file cannot be determined.
        ConfigError: the method lacks an option, an option does not fit, or a number of heads is unknown.
    """
    _refuse_classifier(stored)
    if "method" in stored.meta and "args" in stored.meta:
        trained = from_mapping(stored.meta["args"], PRETRAIN, str(stored.path))
    else:
        # The order of the decoder's rows only matters if the caller asks for the decoder.
        sized = decoded(stored, heads.get("num_heads"), heads.get("decoder_num_heads", 1))
        trained = _infer_config(sized, heads, trained_eps(stored))
        if size := _computed_size(sized):
            trained = dataclasses.replace(trained, input_size=size)
    known = {field.name for field in dataclasses.fields(trained)}
    given = {name: value for name, value in replaced.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"--{name} is no option of method '{trained.method}', which trained {stored.path}; leave it out"
            )
    return dataclasses.replace(trained, resume="", auto_resume=False, **given)


def _refuse_classifier(stored: Checkpoint) -> None:
    """Raise CheckpointError if plsc_mae wrote the file in training a classifier."""
    options = stored.meta.get("args")
    if stored.meta.get("phase", "pretrain") == "pretrain" or not isinstance(options, dict):
        return
    start = f", for example the one that it started from, {options['finetune']}" if options.get("finetune") else ""
    raise CheckpointError(
        f"{stored.path} is a classifier, which has no decoder; expected a checkpoint of pre-training{start}"
    )


def trained_eps(stored: Checkpoint) -> float | None:
    """Return the epsilon of the blocks' layer norms in training, stored or known for the dialect; None means 1e-6."""
    options, name = stored.meta.get("args"), detect(stored.model)
    if isinstance(options, dict) and options.get("norm_eps"):
        return float(options["norm_eps"])
    return find_dialect(name).norm_eps if name else None


def set_final_eps(network: nn.Layer, stored: Checkpoint) -> None:
    """Set the epsilon of the final norms of encoder and decoder to the one that a Hugging Face folder states.

    Other files leave it at 1e-6, even if the norms of the blocks have another epsilon.
    """
    options = stored.meta.get("args")
    eps = options.get("final_norm_eps") if isinstance(options, dict) else None
    for part in (network, getattr(network, "encoder", None), getattr(network, "decoder", None)):
        norm = getattr(part, "norm", None)
        if eps and isinstance(norm, nn.LayerNorm):
            norm._epsilon = float(eps)


def _infer_config(stored: Checkpoint, heads: Mapping[str, int | None], norm_eps: float | None) -> PretrainConfig:
    """Infer options from the tensors of a file that lacks plsc_mae's options; for the errors see `training_config`."""
    method = next((method for method in load_methods() if method.recognizes(stored)), None)
    if method is None:
        raise CheckpointError(
            f"{stored.path} holds no known network of pre-training; expected a checkpoint of plsc_mae or another "
            "file that `plsc-mae weights list` names; if the network is another part of the file, choose it with "
            "--model_key or --model_prefix"
        )
    arguments = method.infer_arguments(stored)
    if "decoder_num_heads" in heads and not method.has_network(stored):
        raise CheckpointError(
            f"{stored.path} holds an encoder only; expected the decoder too: take the file with the full autoencoder "
            "(facebookresearch/mae calls it mae_visualize_* or mae_pretrain_*_full) or a checkpoint of pre-training"
        )
    for key in heads:
        if key not in arguments:  # a decoder without attention has no heads
            continue
        width = arguments.get(key.replace("num_heads", "embed_dim"))
        arguments[key] = heads[key] or stated_heads(stored, key, width) or arguments[key]
        if arguments[key] is None:
            raise ConfigError(f"{stored.path} does not store its number of heads; give it with --{key}")
    return method.config_of({**arguments, **_stored_options(method, stored, arguments), "norm_eps": norm_eps})


def stated_heads(stored: Checkpoint, key: str, width: int | None) -> int | None:
    """Return the number of attention heads that a file states beside its weights; None if it does not.

    The shapes of the weights do not determine it, so another number computes another function without an error. The
    file stores the number, or the name of a registered model.

    Args:
        stored: the file.
        key: "num_heads" or "decoder_num_heads".
        width: width of these blocks. A registered model of another width is not used, except for our own files: a run
            that sets only the width keeps the heads of its model. If `width` is None, no registered model is used.
    """
    options = stored.meta.get("args")
    if not isinstance(options, dict):
        return None
    heads = options.get(key)
    if type(heads) is int and heads > 0:
        return heads
    if width is None:
        return None
    variant = VARIANTS.get(str(options.get("model")))
    sizes = variant.arguments if variant else {}
    is_ours = "phase" in stored.meta
    return sizes.get(key) if is_ours or sizes.get(key.replace("num_heads", "embed_dim")) == width else None


def _computed_size(stored: Checkpoint) -> tuple[int, int] | None:
    """Return the image size (h, w) in pixels implied by a fixed position table for a rectangular grid, else None.

    The methods infer the size for square grids. The grid of a learned table is unknown.
    """
    foreign_name = find_dialect(stored.dialect).foreign_name
    table = stored.model.get(foreign_name("encoder.pos_embed"))
    kernel = stored.model.get(foreign_name("encoder.patch_embed.proj.weight"))
    if table is None or kernel is None or table.ndim != 3 or not table.size:
        return None
    grid = computed_grid(table, int(foreign_name("encoder.cls_token") in stored.model))
    if grid is None or grid[0] == grid[1]:
        return None
    return grid[0] * kernel.shape[-1], grid[1] * kernel.shape[-1]


def _stored_options(method: Method[PretrainConfig], stored: Checkpoint, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of the method that another code base stored; an image size only if no tensor determines it."""
    options = stored.meta.get("args")
    if not isinstance(options, dict):
        return {}
    found = {}
    for ours, names in method.stored_options.items():
        values = [options[name] for name in names if name in options]
        if values and values[0] is not None:
            found[ours] = values[0]
    if arguments["img_size"] is None and options.get("input_size"):
        found["img_size"] = options["input_size"]
    return found
