"""Encoders of checkpoints for the tools: in evaluation mode, with the normalization of their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import paddle

from plsc_mae import weights
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import INCEPTION_MEAN, INCEPTION_STD
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.classifier_weights import require_weights, resize_to
from plsc_mae.loading.training_config import trained_eps, training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.contract import DEFAULT_SIZE
from plsc_mae.models.registry import VARIANTS
from plsc_mae.models.vit import Positions, VisionTransformer, check_heads, fixed_table, pair, patch_grid
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects import NATIVE
from plsc_mae.weights.dialects.base import Array
from plsc_mae.weights.dialects.encoder import infer_encoder

_CLASSIFIERS = ("beit", "plsc_beit")  # dialects of classifiers; an encoder without a head may be stored in them too
_HEADS = {"head.weight", "head.1.weight"}  # of classifiers and of probes, in every dialect


class LoadedEncoder(NamedTuple):
    """An encoder, the normalization of its images, and a line about the origin of its weights."""

    network: VisionTransformer
    normalize: Normalize
    origin: str


def load_encoder(
    source: str | Checkpoint,
    *,
    model_key: str = "",
    model_prefix: str = "",
    num_heads: int | None = None,
    input_size: tuple[int, ...] | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> LoadedEncoder:
    """Build and load the encoder of a checkpoint of pre-training, of a classifier or of a probe.

    Args:
        source: the checkpoint, of plsc_mae or of another code base, or its content. A classifier's images are
            normalized by ImageNet's statistics, and the norm after its pooling is not part of the encoder.
        model_key: key of the weights in it, such as "model_ema"; found by content when empty.
        model_prefix: prefix of the network's tensor names, likewise.
        num_heads: attention heads, if the file does not determine them.
        input_size: image side, or height and width, in place of the checkpoint's; learned positions are resized.
        random_weights: take only the sizes from the file, for comparison with an untrained encoder.
        seed: seed of the random weights.

    Raises:
        CheckpointError: the file cannot be read, or lacks a part of the encoder.
        ConfigError: the number of heads is unknown, or the image size does not fit.
    """
    stored = source if isinstance(source, Checkpoint) else weights.read_network(source, model_key, model_prefix)
    path = str(stored.path)
    paddle.seed(seed)
    sized = decoded(stored, num_heads, 1)  # the order of the decoder's rows is irrelevant here
    if not _HEADS.isdisjoint(sized.model) or sized.dialect in _CLASSIFIERS:
        arguments = infer_encoder_arguments(sized, num_heads, input_size)
        if eps := trained_eps(stored):
            arguments["norm_eps"] = eps
        network, normalize = VisionTransformer(**arguments), normalization(sized)
    else:
        config = training_config(stored, {"num_heads": num_heads}, input_size=input_size)
        method = load_method(config.method)
        network, normalize = method.build_encoder(config), method.normalize(config)
    if random_weights:
        origin = f"{path}: its sizes with random weights, seed {seed}"
    else:
        report = weights.load(network, stored, prefix="encoder.", resize=resize_to(network))
        require_weights(network, report, path)
        origin = f"{path}: {len(report.matched) + len(report.resized)} tensors of the encoder ({report.dialect})"
    network.eval()
    return LoadedEncoder(network, normalize, origin)


def infer_encoder_arguments(
    stored: Checkpoint, num_heads: int | None, input_size: tuple[int, ...] | None
) -> dict[str, Any]:
    """Infer the arguments of `VisionTransformer` from the shapes of tensors, and the rest from stored options.

    Args:
        stored: the file, in the base naming of its dialect.
        num_heads: attention heads, if the file does not determine them.
        input_size: image side, or height and width, in place of the file's.

    Raises:
        CheckpointError: there is no encoder, or its positions are not of a square grid.
        ConfigError: the number of heads is unknown.
    """
    rules = recognize(stored.model, str(stored.path))
    sizes = infer_encoder(stored.model, rules, str(stored.path))
    options = _options(stored)
    table = stored.model.get(rules.foreign_name("encoder.pos_embed"))
    sizes["num_heads"] = num_heads or _trained_heads(options, sizes["embed_dim"]) or sizes["num_heads"]
    if sizes["num_heads"] is None:
        raise ConfigError(f"{stored.path} does not store its number of heads; give it with --num_heads")
    # Options that other code bases store need not match the tensors.
    trained = (options.get("input_size") if rules is NATIVE else None) or sizes["img_size"]
    if trained is None and table is not None:
        raise CheckpointError(
            f"{stored.path} does not store its image size, and its positions are not of a square grid; expected square "
            "images"
        )
    trained = pair(trained or options.get("input_size") or DEFAULT_SIZE)
    grid = patch_grid(trained, sizes["patch_size"])
    check_heads("embed_dim", sizes["embed_dim"], sizes["num_heads"])
    positions = _positions(table, grid, sizes["embed_dim"], class_token=sizes["class_token"])
    return {**sizes, "img_size": input_size or trained, "positions": positions}


def normalization(stored: Checkpoint) -> Normalize:
    """Return the normalization by ImageNet's mean and std, or by 0.5 and 0.5 if the stored options ask for it."""
    if _options(stored).get("imagenet_inception_mean_and_std"):
        return Normalize(INCEPTION_MEAN, INCEPTION_STD)
    return Normalize()


def _options(stored: Checkpoint) -> Mapping[str, Any]:
    options = stored.meta.get("args")
    return options if isinstance(options, dict) else {}


def _trained_heads(options: Mapping[str, Any], embed_dim: int) -> int | None:
    """Return the heads in stored options, else those of the registered model they name if its width is `embed_dim`."""
    if options.get("num_heads"):
        return int(options["num_heads"])
    variant = VARIANTS.get(str(options.get("model")))
    return variant.arguments["num_heads"] if variant and variant.arguments["embed_dim"] == embed_dim else None


def _positions(table: Array | None, grid: tuple[int, int], dim: int, *, class_token: bool) -> Positions:
    """Return the kind of a position embedding [1, T + L, D]; files without one are MAE-pytorch's or CAE's."""
    if table is None:
        return "none" if class_token else "sinusoid"
    kinds: tuple[Positions, ...] = ("column first", "row first")
    for kind in kinds:
        computed = fixed_table(dim, grid, positions=kind, class_token=class_token).numpy()
        if computed.shape == table.shape and np.allclose(table, computed, atol=1e-5):
            return kind
    return "learned"
