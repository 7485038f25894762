"""The kind of network that a weight file holds, judged by its tensors."""

from __future__ import annotations

from plsc_mae.config import PretrainConfig
from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_methods
from plsc_mae.methods.contract import Method
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded

# Kinds besides the networks of the methods.
TOKENIZER, CLASSIFIER, ENCODER, UNKNOWN = "tokenizer", "classifier", "encoder", "unknown"
HEADS = ("head.weight", "head.1.weight")  # of classifiers and of probes, in every base naming


def base_of(stored: Checkpoint, num_heads: int | None = None, decoder_num_heads: int | None = None) -> Checkpoint:
    """Return a file in the base naming of its dialect; rows may be out of order if the number of heads is unknown.

    Raises:
        CheckpointError: the shapes of the tensors fit no network of the dialect.
    """
    try:
        return decoded(stored, num_heads, decoder_num_heads)
    except ConfigError:
        return decoded(stored, num_heads or 1, decoder_num_heads or 1)


def kind_of(base: Checkpoint) -> str:
    """Return the kind of network in a file in base naming: a constant of this module, or a method's `network`."""
    if any(name.endswith("blocks.input.w") for name in base.model):
        return TOKENIZER
    if not base.dialect:
        return UNKNOWN
    if any(name in HEADS or name.startswith("head.linears.") for name in base.model):
        return CLASSIFIER
    return next((method.network for method in load_methods() if method.has_network(base)), ENCODER)


def method_of_kind(kind: str) -> Method[PretrainConfig] | None:
    """Return the first method with this kind of network; None for the constants of this module."""
    return next((method for method in load_methods() if method.network == kind), None)
