"""Networks of weight files of any dialect, built and loaded: what tells the files' tensors in our names and layouts."""

from __future__ import annotations

import inspect

from paddle import nn

from plsc_mae import weights
from plsc_mae.config.schema import plain_values
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.classifier import load_classifier
from plsc_mae.loading.classifier_weights import require_weights
from plsc_mae.loading.contents import CAE, CLASSIFIER, ENCODER, MAE, TOKENIZER, base_of
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.loading.training_config import training_config
from plsc_mae.methods import load_method
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.registry import create_model
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded
from plsc_mae.weights.dialects import find_dialect
from plsc_mae.weights.dialects.base import Array, tensor_of_rank


def our_tensors(
    stored: Checkpoint, kind: str, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> dict[str, Array]:
    """The tensors of a file's network in our names and layouts; see `holding_network`."""
    network = holding_network(stored, kind, num_heads, decoder_num_heads)
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def holding_network(
    stored: Checkpoint, kind: str, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> nn.Layer:
    """Build the network of a file to hold its tensors, not to compute: heads matter where the order of rows does.

    Raises:
        CheckpointError: it is no network that can be built, or lacks a tensor.
        ConfigError: heads are needed and not known.
    """
    try:
        return open_network(stored, kind, num_heads, decoder_num_heads)
    except ConfigError:
        # Raises where the order of rows depends on heads that are not known.
        decoded(stored, num_heads, decoder_num_heads)
        return open_network(stored, kind, num_heads or 1, decoder_num_heads or 1)


def open_network(
    stored: Checkpoint, kind: str, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> nn.Layer:
    """Build the network of a file and load it.

    Args:
        stored: the file as `weights.read` gives it.
        kind: which part of it: "mae", "cae", "classifier" or "encoder", see `contents.kind_of`.
        num_heads: of a foreign encoder of unpublished width.
        decoder_num_heads: of its decoder.

    Raises:
        CheckpointError: the file does not hold it, or lacks a tensor.
        ConfigError: heads are needed and not known.
    """
    path = str(stored.path)
    if kind == CLASSIFIER:
        return load_classifier(path, num_heads=num_heads).network
    if kind == ENCODER:
        return load_encoder(path, num_heads=num_heads).network
    if kind not in (MAE, CAE):
        reason = "a tokenizer, whose tensors have one naming only" if kind == TOKENIZER else "no network known here"
        raise CheckpointError(f"{path} holds {reason}")
    base = base_of(stored, num_heads, decoder_num_heads)
    config = training_config(base, {"num_heads": num_heads, "decoder_num_heads": decoder_num_heads})
    if kind == MAE:
        network = load_method(config.method).build_task(config).model
    else:  # a task of CAE has a tokenizer as well, which is not in the file
        taken = inspect.signature(ContextAutoencoder).parameters
        sizes = {name: value for name, value in plain_values(config).items() if name in taken}
        bias = tensor_of_rank(base.model, find_dialect(base.dialect).foreign_name("decoder.head.bias"), 1, path)
        sizes["decoder_num_classes"] = None if bias is None else len(bias)
        network = create_model(config.model, **sizes, img_size=config.image_size)
    require_weights(network, weights.load(network, stored), path)
    return network
