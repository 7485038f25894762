"""Networks built and loaded from weight files of any dialect."""

from __future__ import annotations

from typing import Any, NamedTuple

from paddle import nn

from plsc_mae import weights
from plsc_mae.config import PretrainConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.classifier import load_classifier
from plsc_mae.loading.completeness import BESIDE_A_NETWORK, require_complete
from plsc_mae.loading.contents import CLASSIFIER, ENCODER, TOKENIZER, base_of, method_of_kind
from plsc_mae.loading.encoder import load_encoder, stated_normalize
from plsc_mae.loading.positions import PositionFit
from plsc_mae.loading.training_config import set_final_eps, training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.contract import Method
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects.base import Array
from plsc_mae.weights.dialects.encoder import infer_encoder


def our_tensors(
    stored: Checkpoint, kind: str, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> dict[str, Array]:
    """Return the tensors of a file's network in plsc_mae's names and layouts; for the arguments see `open_network`."""
    network = holding_network(stored, kind, num_heads, decoder_num_heads)
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def holding_network(
    stored: Checkpoint,
    kind: str,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    *,
    in_chans: int | None = None,
) -> nn.Layer:
    """Build and load the network of a file to read its tensors; do not compute with it: its heads may be wrong.

    An unknown number of heads is an error only if the order of rows in the file depends on it. For the arguments see
    `open_network`.

    Raises:
        CheckpointError: the file holds no such network that plsc_mae can build, or its tensors cannot be used.
        ConfigError: the number of heads is needed and unknown, or an option does not fit.
    """
    try:
        return open_network(stored, kind, num_heads, decoder_num_heads, any_grid=True, in_chans=in_chans)
    except ConfigError:
        # Raises if the order of rows depends on the unknown number of heads.
        decoded(stored, num_heads, decoder_num_heads)
        return open_network(stored, kind, num_heads or 1, decoder_num_heads or 1, any_grid=True, in_chans=in_chans)


def open_network(
    stored: Checkpoint,
    kind: str,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    *,
    any_grid: bool = False,
    dry_run: bool = False,
    in_chans: int | None = None,
) -> nn.Layer:
    """Build the network of a file and load it.

    Args:
        stored: the file as `weights.read` returns it.
        kind: the part of it to load, see `contents.kind_of`.
        num_heads: attention heads of the encoder, needed if the file does not determine them.
        decoder_num_heads: attention heads of the decoder, needed if the file does not determine them.
        any_grid: if the grid of the positions of an encoder or classifier is unknown, build the network for images
            with a single row of patches, which holds these positions.
        dry_run: for a network of pre-training, compare names, shapes and types only; no effect on an encoder or
            classifier.
        in_chans: channels of the images, in place of the file's; weights are converted.

    Raises:
        CheckpointError: the file holds no such network that plsc_mae can build, or its tensors cannot be used.
        ConfigError: the number of heads is unknown, or an option does not fit.
    """
    path = str(stored.path)
    if kind in (CLASSIFIER, ENCODER):
        size = _one_row(stored) if any_grid else None
        if kind == CLASSIFIER:
            return load_classifier(stored, num_heads=num_heads, input_size=size, in_chans=in_chans).network
        return load_encoder(stored, num_heads=num_heads, input_size=size, in_chans=in_chans).network
    if method_of_kind(kind) is None:
        reason = "a tokenizer, whose tensors have one naming only" if kind == TOKENIZER else "no known network"
        raise CheckpointError(f"{path} holds {reason}; expected a network of pre-training, a classifier or an encoder")
    base = base_of(stored, num_heads, decoder_num_heads)
    config = training_config(base, {"num_heads": num_heads, "decoder_num_heads": decoder_num_heads}, in_chans=in_chans)
    network = load_method(config.method).build_network(config, base)
    fit = PositionFit(network, network.encoder, stored) if dry_run or in_chans else None
    report = weights.load(network, stored, resize=fit, dry_run=dry_run)
    require_complete(network, report, path, idle=BESIDE_A_NETWORK, by_options=False)
    if fit is not None:
        fit.require_grid()
    return network


class PretrainingNetwork(NamedTuple):
    """A loaded network of pre-training, its method, options and normalization, and a line about its origin."""

    network: nn.Layer
    method: Method[PretrainConfig]
    config: PretrainConfig
    normalize: Normalize
    origin: str


def load_pretraining_network(
    stored: Checkpoint, num_heads: int | None = None, decoder_num_heads: int | None = None, **replaced: Any
) -> PretrainingNetwork:
    """Build and load the whole network of pre-training of a file, frozen and in evaluation mode, without its Task.

    Args:
        stored: the file as `weights.read` returns it.
        num_heads: attention heads of the encoder, needed if the file does not determine them.
        decoder_num_heads: attention heads of the decoder, needed if the file does not determine them.
        replaced: options that replace the checkpoint's, see `training_config`; positions are resized to `input_size`.

    Raises:
        CheckpointError: the file holds no such network that plsc_mae can build, or its tensors cannot be used.
        ConfigError: the number of heads is unknown, or an option does not fit.
    """
    heads = {"num_heads": num_heads, "decoder_num_heads": decoder_num_heads}
    config = training_config(stored, heads, **replaced)
    method = load_method(config.method)
    network = method.build_network(config, base_of(stored, num_heads, decoder_num_heads))
    fit = PositionFit(network, network.encoder, stored)
    report = weights.load(network, stored, resize=fit)
    require_complete(network, report, str(stored.path), idle=BESIDE_A_NETWORK, by_options=False)
    fit.require_grid()
    set_final_eps(network, stored)
    network.eval()
    for parameter in network.parameters():
        parameter.stop_gradient = True
    normalize = stated_normalize(stored, method.normalize(config))
    return PretrainingNetwork(network, method, config, normalize, f"{stored.path}: {report}")


def _one_row(stored: Checkpoint) -> tuple[int, int] | None:
    """Return the image size (h, w) at which all patches of an encoder form one row, if its grid is unknown.

    The result is None if the positions form a square grid or are not in the file, and for training checkpoints of
    plsc_mae, which store their image size.
    """
    base = base_of(stored)
    if "phase" in base.meta:
        return None
    rules = recognize(base.model, str(base.path))
    sizes = infer_encoder(base.model, rules, str(base.path))
    table = base.model.get(rules.foreign_name("encoder.pos_embed"))
    if table is None or sizes["prefix_positions"] is not None:
        return None
    return sizes["patch_size"], sizes["patch_size"] * (table.shape[1] - int(sizes["class_token"]))
