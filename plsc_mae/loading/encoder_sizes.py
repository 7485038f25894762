"""Sizes of a classifier's encoder, taken from the file that it starts from.

A checkpoint of plsc_mae stores its options, so the user need not repeat sizes that differ from those of --model. Other
files do not determine the number of heads; for them, an error names the options.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from plsc_mae.config import PHASES, ClassifyConfig
from plsc_mae.errors import CheckpointError, ConfigError, flag
from plsc_mae.loading.classifier_weights import based
from plsc_mae.loading.training_config import stated_heads
from plsc_mae.methods import load_method, load_recipe
from plsc_mae.methods.contract import ENCODER_SIZES, sizes_of_model
from plsc_mae.models.registry import CLASSIFIER, VARIANTS, require_network
from plsc_mae.models.vit import pair
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.dialects import NATIVE
from plsc_mae.weights.dialects.encoder import infer_encoder

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=ClassifyConfig)
Sizes = dict[str, Any]  # {option: value}, in the order of ENCODER_SIZES
_INSPECT = "`plsc-mae weights inspect FILE` prints the whole command"


def settle_sizes(config: ConfigT, stored: Checkpoint) -> ConfigT:
    """Return the config of a classifier with the sizes of the encoder in a file, and log those that it did not have.

    If the sizes are those of --model and the other options, the config is returned unchanged. Otherwise those that the
    user did not set are taken from a checkpoint of plsc_mae, and with them the size of its images; without --model, the
    nearest registered network is taken too. A number of heads that the user set is kept.

    Raises:
        ConfigError: the options name no classifier, or --input_size does not fit the file's patches.
        CheckpointError: the file holds no encoder that plsc_mae can build; its sizes contradict options that the user
            set; they differ, and the file does not determine all of them; or they are those of another registered
            network than --model.
    """
    require_network(config.model, CLASSIFIER)
    found, own = _sizes_in(stored, config), _sizes_of(config)
    differing = {name: value for name, value in found.items() if not _same(name, value, own[name], found["embed_dim"])}
    if not _stores_sizes(stored) or config.num_heads is not None:
        differing.pop("num_heads", None)  # a warning follows if the file states another number
    if not differing:
        return config
    _refuse_contradictions(config, stored, found, differing)
    nearest = load_recipe(config.method).size_options(found)
    if not _stores_sizes(stored):
        raise CheckpointError(f"{_describe(stored, found, differing, config.model)}; {_remedy(nearest)}")
    if config.sets("model"):
        _refuse_other_model(config, stored, found, differing, nearest)
        taken = differing
    else:
        _refuse_other_network(config, stored, found)
        taken = {name: nearest[name] for name in nearest if nearest[name] != getattr(config, name)}
        taken = {name: value for name, value in taken.items() if not config.sets(name)}
    if taken.keys() - {"model"} and not config.sets("input_size"):
        taken["input_size"] = tuple(stored.meta["args"]["input_size"])
    settled = dataclasses.replace(config, **taken)
    _require_whole_patches(settled, stored)
    logger.info("from %s: %s", stored.path, _listed(taken))
    return settled


def _stores_sizes(stored: Checkpoint) -> bool:
    """Return True for a checkpoint of plsc_mae, whose options determine its encoder."""
    options = stored.meta.get("args")
    return (
        stored.dialect == NATIVE.name
        and "method" in stored.meta
        and isinstance(options, dict)
        and options.get("model") in VARIANTS
        and bool(options.get("input_size"))
    )


def _sizes_in(stored: Checkpoint, config: ClassifyConfig) -> Sizes:
    """Return the sizes of the encoder in a file; without plsc_mae's options, the number of heads may be None."""
    base, rules = based(stored, config.num_heads or 1)
    inferred = infer_encoder(base.model, rules, str(stored.path))
    found = {name: inferred[name] for name in ENCODER_SIZES}
    if not _stores_sizes(stored):
        return {**found, "num_heads": stated_heads(stored, "num_heads", found["embed_dim"]) or found["num_heads"]}
    options = stored.meta["args"]
    trained = sizes_of_model(options["model"])
    return found | {name: options.get(name) or trained[name] for name in ("num_heads", "mlp_ratio")}


def _sizes_of(config: ClassifyConfig) -> Sizes:
    given = {name: getattr(config, name) for name in ENCODER_SIZES}
    return sizes_of_model(config.model) | {name: value for name, value in given.items() if value is not None}


def _same(name: str, one: Any, two: Any, embed_dim: int) -> bool:
    """Return True if two values of a size give the same shapes; the width of an MLP is rounded down."""
    return int(one * embed_dim) == int(two * embed_dim) if name == "mlp_ratio" else bool(one == two)


def _refuse_contradictions(config: ClassifyConfig, stored: Checkpoint, found: Sizes, differing: Sizes) -> None:
    """Raise CheckpointError if the user has set sizes in which the file differs."""
    given = {name: getattr(config, name) for name in differing if config.sets(name)}
    if given:
        theirs = {name: found[name] for name in given}
        verb, them = ("contradicts", "it") if len(given) == 1 else ("contradict", "them")
        remedy = f"give {_flags(theirs)}" + (f", or leave {them} out" if _stores_sizes(stored) else "")
        raise CheckpointError(f"{_flags(given)} {verb} {stored.path}, whose encoder has {_listed(theirs)}; {remedy}")


def _refuse_other_model(
    config: ClassifyConfig, stored: Checkpoint, found: Sizes, differing: Sizes, nearest: Sizes
) -> None:
    """Raise CheckpointError if the file has the shapes of a registered network other than --model."""
    if len(nearest) == 1 and differing.keys() != {"num_heads"}:
        raise CheckpointError(
            f"{_describe(stored, found, differing, config.model)}; give {flag('model')} {nearest['model']}, or leave "
            f"{flag('model')} out"
        )


def _refuse_other_network(config: ClassifyConfig, stored: Checkpoint, found: Sizes) -> None:
    """Raise CheckpointError if a method with another kind of network has trained the file of a run without --model."""
    name = stored.meta["method"]
    if name in PHASES[config.phase] and load_method(name).network != load_method(config.method).network:
        model = load_recipe(name).size_options(found)["model"]
        raise CheckpointError(
            f"{stored.path} was trained by method {name}, but this run is of {config.method}; give {flag('model')} "
            f"{model}"
        )


def _describe(stored: Checkpoint, found: Sizes, differing: Sizes, model: str) -> str:
    own = sizes_of_model(model)
    theirs, ours = ({name: sizes[name] for name in differing} for sizes in (found, own))
    return f"{stored.path} has an encoder of {_listed(theirs)}, but {model} has {_listed(ours)}"


def _remedy(options: Mapping[str, Any]) -> str:
    """Return the advice for a file that does not determine all sizes."""
    text = f"for its sizes give {_flags(options)}"
    if options.get("num_heads", 1) is None:
        text += ", where N is the number of attention heads, which the file does not store"
    return f"{text}; {_INSPECT}"


def _require_whole_patches(config: ClassifyConfig, stored: Checkpoint) -> None:
    """Raise ConfigError if the user's --input_size is no multiple of the file's patch size."""
    patch_size = _sizes_of(config)["patch_size"]
    if any(side % patch_size for side in config.image_size):
        trained = stored.meta["args"]["input_size"]
        raise ConfigError(
            f"{flag('input_size')} {_text(config.input_size)} is not a multiple of patch_size {patch_size}, that of "
            f"{stored.path}; leave it out for {_text(trained)}, the size of its training, or give a multiple"
        )


def _flags(options: Mapping[str, Any]) -> str:
    return " ".join(f"{flag(name)} {'N' if value is None else _text(value)}" for name, value in options.items())


def _listed(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in sizes.items())


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        height, width = pair(tuple(value))
        return f"{height}" if height == width else f"{height} {width}"
    return f"{value:g}" if isinstance(value, float) else str(value)
