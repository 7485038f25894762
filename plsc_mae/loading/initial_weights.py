"""Weights of a file as the start of a pre-training run (--initial_weights)."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from paddle import nn

from plsc_mae import weights
from plsc_mae.config import PretrainConfig
from plsc_mae.errors import CheckpointError, flag
from plsc_mae.loading.classifier_weights import based, require_encoder, warn_of_eps
from plsc_mae.loading.completeness import COMPUTED, TEACHERS, belongs_to, fixed_tables
from plsc_mae.loading.positions import PositionFit
from plsc_mae.loading.training_config import stated_heads
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Task
from plsc_mae.methods.contract import Method
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights import Checkpoint, LoadReport
from plsc_mae.weights.dialects import NATIVE, find_dialect
from plsc_mae.weights.dialects.encoder import infer_encoder
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

_SIZES = ("patch_size", "embed_dim", "depth", "mlp_ratio")  # ends of the names of options that determine shapes


def load_initial_weights(task: Task, config: PretrainConfig) -> LoadReport:
    """Load the file of --initial_weights into the network of a task, log the result, and return the report of loading.

    The file holds a whole network of pre-training, a classifier or an encoder, in any dialect. The encoder must be
    complete as `require_encoder` defines it, but may lack its final norm. `Task.complete_initial_weights` can set other
    tensors that the file lacks, and the remaining ones keep their initial values. Positions are resized to the
    network's grid, and the patch embedding and the prediction of pixels are converted to its channels.

    Args:
        task: the task, with fresh weights; its `model.encoder` is a VisionTransformer.
        config: options of the run.

    Raises:
        CheckpointError: the file cannot be read or used, holds no encoder of the network's sizes and numbers of heads,
            or has a tensor of another shape.
    """
    network, encoder = task.model, task.model.encoder
    assert isinstance(encoder, VisionTransformer)
    stored = weights.read_network(config.initial_weights, config.model_key, config.model_prefix)
    warn_of_eps(encoder, stored)
    base, rules = based(stored, encoder.blocks[0].attn.num_heads)
    fit = PositionFit(network, encoder, stored)
    try:
        report = weights.load(network, stored, resize=fit)
        require_encoder(network, encoder, report, base, rules, fresh=("encoder.norm.",))
    except CheckpointError as error:
        if sizes := _other_sizes(task, load_method(config.method), base):
            sizes |= _stated_heads(stored, int(sizes.get("embed_dim", encoder.embed_dim)), config.method)
            given = " ".join(f"{flag(name)} {value:g}" for name, value in sizes.items())
            raise CheckpointError(f"{error}; for its sizes give {given}, or the --config of its run") from None
        raise
    fit.require_grid()
    _require_heads(stored, network, config)
    task.complete_initial_weights(report.missing)
    _log(str(stored.path), report, fixed_tables(network))
    return report


def _other_sizes(task: Task, method: Method[Any], base: Checkpoint) -> dict[str, float]:
    """Return {option: size of the file's network} for the sizes in which the network of the run differs."""
    shapes = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in task.model.state_dict().items()}
    own = dataclasses.replace(base, model=shapes, dialect=NATIVE.name)
    whole = method.has_network(base) and method.has_network(own)
    found, needed = (
        method.infer_arguments(stored)
        if whole
        else infer_encoder(stored.model, find_dialect(stored.dialect), str(stored.path))
        for stored in (base, own)
    )
    return {name: found[name] for name in found if name.endswith(_SIZES) and found[name] != needed[name]}


def _stated_heads(stored: Checkpoint, embed_dim: int, method: str) -> dict[str, int]:
    """Return {option: number of attention heads} as a file states them; the decoder's only for a file of `method`."""
    found = {"num_heads": stated_heads(stored, "num_heads", embed_dim)}
    if stored.meta.get("method") == method:
        found["decoder_num_heads"] = stated_heads(stored, "decoder_num_heads", None)
    return {name: number for name, number in found.items() if number}


def _require_heads(stored: Checkpoint, network: nn.Layer, config: PretrainConfig) -> None:
    """Raise CheckpointError if a file states other numbers of attention heads than the network has."""
    encoder = network.encoder
    for name, trained in _stated_heads(stored, encoder.embed_dim, config.method).items():
        blocks = encoder.blocks if name == "num_heads" else getattr(network.decoder, "blocks", ())
        own = blocks[0].attn.num_heads if blocks else getattr(config, name)
        if own != trained:
            raise CheckpointError(
                f"{stored.path} was trained with {flag(name)} {trained}, but the network has {own}; give {flag(name)} "
                f"{trained}, or the --config of its run"
            )


def _log(path: str, report: LoadReport, computed: set[str]) -> None:
    """Log the number of loaded tensors, and the parts that only the network or only the file has."""
    fresh = [name for name in report.missing if name not in computed and not belongs_to(name, TEACHERS)]
    unused = [name for name in report.unexpected if not name.endswith(COMPUTED)]
    logger.info(
        "--initial_weights %s (%s): %s loaded; random, because the file lacks them: %s; not used, because the "
        "network lacks them: %s%s",
        *(path, report.dialect, counted(len(report.matched) + len(report.resized), "tensor")),
        *(_by_part(fresh), _by_part(unused)),
        f"; resized or converted: {', '.join(report.resized)}" if report.resized else "",
    )


def _by_part(names: Iterable[str]) -> str:
    """Return the parts that have these tensors, with their numbers, such as "decoder (30)"; "nothing" without names."""
    counts = Counter(name.removeprefix("encoder.").partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"
