"""Encoders of checkpoints for the tools: in evaluation mode, with the normalization of their training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import paddle

from plsc_mae import weights
from plsc_mae.config.features import EncoderConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD
from plsc_mae.errors import CheckpointError, ConfigError, remedies
from plsc_mae.loading.completeness import BESIDE_THE_ENCODER, LIBRARY_REMEDY, refuse_unsupported, require_complete
from plsc_mae.loading.positions import PositionFit, computed_grid, computed_kind, size_remedy
from plsc_mae.loading.training_config import set_final_eps, stated_heads, trained_eps, training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.contract import DEFAULT_SIZE
from plsc_mae.models.vit import Positions, VisionTransformer, check_heads, pair, patch_grid
from plsc_mae.weights import Checkpoint, LoadReport
from plsc_mae.weights.convert import decoded, recognize
from plsc_mae.weights.dialects import NATIVE
from plsc_mae.weights.dialects.base import Array, Dialect
from plsc_mae.weights.dialects.encoder import infer_encoder
from plsc_mae.weights.dialects.grids import prefix_positions
from plsc_mae.weights.folders import ImageStatistics
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

# Dialects of plain ViTs and of classifiers; an encoder without a head may be stored in them too.
_VITS = ("facebook", "timm", "plsc", "beit", "plsc_beit")
_HEADS = {"head.weight", "head.1.weight"}  # of classifiers and of probes, in every dialect


class LoadedEncoder(NamedTuple):
    """An encoder, the normalization of its images, and a line about the origin of its weights."""

    network: VisionTransformer
    normalize: Normalize
    origin: str


def open_encoder(config: EncoderConfig) -> LoadedEncoder:
    """Load the encoder named by the options of a command, see `load_encoder`."""
    return load_encoder(
        config.model_path,
        model_key=config.model_key,
        model_prefix=config.model_prefix,
        num_heads=config.num_heads,
        input_size=config.input_size,
        random_weights=config.random_weights,
        seed=config.seed,
        in_chans=config.wanted_channels,
    )


def load_encoder(
    source: str | Checkpoint,
    *,
    model_key: str = "",
    model_prefix: str = "",
    num_heads: int | None = None,
    input_size: tuple[int, ...] | None = None,
    random_weights: bool = False,
    seed: int = 0,
    in_chans: int | None = None,
) -> LoadedEncoder:
    """Build and load the encoder of a file: a checkpoint of pre-training, a classifier, a probe, or an encoder alone.

    Args:
        source: the checkpoint, of plsc_mae or of another code base, or its content. Of a classifier, the norm after the
            pooling and the head are left out; for the normalization of its images see `normalization`.
        model_key: key of the weights in the file, such as "model_ema"; "" to find them. Unused if `source` is content.
        model_prefix: prefix of the network's tensor names; unused if `source` is content.
        num_heads: attention heads, needed if the file does not determine them.
        input_size: image side, or height and width, in place of the checkpoint's; learned positions are resized.
        random_weights: take only the sizes from the file, for comparison with an untrained encoder.
        seed: seed of the random weights.
        in_chans: channels of the images, in place of the checkpoint's; the patch embedding is converted.

    Raises:
        CheckpointError: the file cannot be read or used, or holds no complete encoder that plsc_mae can build.
        ConfigError: the number of heads is unknown, or an option does not fit.
    """
    stored = source if isinstance(source, Checkpoint) else weights.read_network(source, model_key, model_prefix)
    path = str(stored.path)
    paddle.seed(seed)
    network, normalize = build_encoder(stored, num_heads, input_size, in_chans)
    report = fill_encoder(network, stored, dry_run=random_weights)
    assumed = network.cls_token is not None and network.register_tokens is None and network.prefix_positions == 0
    if assumed and input_size is None and not random_weights:
        logger.warning(
            "%s has %d positions, taken for a grid of %d x %d patches without a row for the class token; for a "
            "rectangle give height and width of the images of its training as input size",
            *(path, network.num_patches, *network.grid),
        )
    origin = f"{path}: {counted(len(report.matched) + len(report.resized), 'tensor')} of the encoder ({report.dialect})"
    if random_weights:
        origin = f"{path}: its sizes with random weights, seed {seed}"
    set_final_eps(network, stored)
    network.eval()
    return LoadedEncoder(network, normalize, f"{origin}, images of {network.img_size[0]} x {network.img_size[1]}")


def build_encoder(
    stored: Checkpoint,
    num_heads: int | None = None,
    input_size: tuple[int, ...] | None = None,
    in_chans: int | None = None,
) -> tuple[VisionTransformer, Normalize]:
    """Build the encoder that a file holds, with fresh weights; return (encoder, normalization of its images).

    Raises:
        CheckpointError: the file holds no encoder that plsc_mae can build.
        ConfigError: the number of heads is unknown, or an option does not fit.
    """
    sized = decoded(stored, num_heads, 1)  # the order of the decoder's rows is irrelevant here
    is_ours = "method" in sized.meta and "args" in sized.meta
    is_vit = sized.dialect in _VITS and not is_ours and not _lacks_its_table(sized)
    if _HEADS.isdisjoint(sized.model) and not is_vit:
        config = training_config(stored, {"num_heads": num_heads}, input_size=input_size, in_chans=in_chans)
        method = load_method(config.method)
        return method.build_encoder(config), stated_normalize(stored, method.normalize(config))
    arguments = infer_encoder_arguments(sized, num_heads, input_size)
    arguments["in_chans"] = in_chans or arguments["in_chans"]
    if eps := trained_eps(stored):
        arguments["norm_eps"] = eps
    return VisionTransformer(**arguments), normalization(sized, arguments["in_chans"])


def fill_encoder(network: VisionTransformer, stored: Checkpoint, *, dry_run: bool = False) -> LoadReport:
    """Load a file's encoder and return the report; with `dry_run` compare names, shapes and types only.

    Raises:
        CheckpointError: the tensors of the file are not those of the encoder, or cannot be used.
    """
    fit = PositionFit(network, network, stored)
    report = weights.load(network, stored, prefix="encoder.", resize=fit, dry_run=dry_run)
    path = str(stored.path)
    require_complete(network, report, path, idle=BESIDE_THE_ENCODER, part="encoder", by_options=False)
    fit.require_grid()
    return report


def _lacks_its_table(stored: Checkpoint) -> bool:
    """Return True for an autoencoder of facebookresearch/mae whose computed position table was not saved."""
    return "pos_embed" not in stored.model and "decoder_embed.weight" in stored.model


def infer_encoder_arguments(
    stored: Checkpoint, num_heads: int | None, input_size: tuple[int, ...] | None
) -> dict[str, Any]:
    """Infer the arguments of `VisionTransformer` from the tensors and the stored options of a file.

    Args:
        stored: the file, in the base naming of its dialect.
        num_heads: attention heads, needed if the file does not determine them.
        input_size: image side, or height and width, in place of the file's.

    Raises:
        CheckpointError: the file holds no encoder that plsc_mae can build, or the grid of its positions is unknown.
        ConfigError: the number of heads is unknown, or a size does not fit.
    """
    rules = recognize(stored.model, str(stored.path))
    refuse_unsupported(stored.model, rules, str(stored.path))
    sizes = infer_encoder(stored.model, rules, str(stored.path))
    options = _options(stored)
    table = stored.model.get(rules.foreign_name("encoder.pos_embed"))
    _require_positions(sizes, table, rules, str(stored.path))
    sizes["num_heads"] = num_heads or stated_heads(stored, "num_heads", sizes["embed_dim"]) or sizes["num_heads"]
    if sizes["num_heads"] is None:
        raise ConfigError(
            f"{stored.path} does not store its number of heads; "
            + (remedies("give it with --num_heads") or "convert it with `plsc-mae weights convert --num_heads N` first")
        )
    trained = _trained_size(stored, sizes)
    if table is not None:
        trained, sizes["prefix_positions"] = _fitting(stored, table, sizes, trained, input_size)
    trained = pair(trained or options.get("input_size") or DEFAULT_SIZE)
    grid = patch_grid(trained, sizes["patch_size"])
    check_heads("embed_dim", sizes["embed_dim"], sizes["num_heads"])
    positions: Positions
    if table is None:  # of MAE-pytorch or CAE
        positions = "none" if sizes["class_token"] else "sinusoid"
    else:
        positions = computed_kind(table, grid, class_token=sizes["prefix_positions"] > 0) or "learned"
    return {**sizes, "img_size": input_size or trained, "positions": positions}


def _trained_size(stored: Checkpoint, sizes: Mapping[str, Any]) -> Any:
    """Return the image size stored by plsc_mae, else the one implied by a square position table, else None."""
    # Options that other code bases store need not match the tensors.
    own = _options(stored).get("input_size") if stored.dialect == NATIVE.name else None
    return own or sizes["img_size"]


def _require_positions(sizes: Mapping[str, Any], table: Array | None, rules: Dialect, path: str) -> None:
    """Raise CheckpointError if a plain ViT has no positions, because it may have rotary ones, which are not stored."""
    if table is None and sizes["k_bias"] and sizes["relative_positions"] == "none" and rules is not NATIVE:
        raise CheckpointError(
            f"{path} has no position table ({rules.foreign_name('encoder.pos_embed')}), as networks with rotary "
            f"positions; {LIBRARY_REMEDY}"
        )


def _fitting(
    stored: Checkpoint,
    table: Array,
    sizes: Mapping[str, Any],
    trained: Any,
    input_size: tuple[int, ...] | None,
) -> tuple[Any, int]:
    """Return (image size of the training, number P of rows that belong to no patch) for a table [1, P + L, D].

    `trained` is the image size stored in the file or implied by a square table, `input_size` the user's.
    """
    rows, square_prefix = table.shape[1], sizes["prefix_positions"]

    def prefix_for(size: Any) -> int | None:
        patches = math.prod(patch_grid(pair(size), sizes["patch_size"]))
        return prefix_positions(rows, int(sizes["class_token"]), sizes["register_tokens"], patches)

    if trained != sizes["img_size"] and (prefix := prefix_for(trained)) is not None:
        return trained, prefix
    if grid := computed_grid(table, int(sizes["class_token"])):
        return tuple(side * sizes["patch_size"] for side in grid), int(sizes["class_token"])
    prefix = None if input_size is None else prefix_for(input_size)
    if prefix is not None and prefix != square_prefix:
        return input_size, prefix
    if square_prefix is not None:
        return sizes["img_size"], square_prefix
    wanted = "" if input_size is None else f", nor those of an image of {' x '.join(map(str, pair(input_size)))}"
    raise CheckpointError(
        f"{stored.path} does not store its image size, and its {rows} positions are not of a square grid{wanted}; "
        + size_remedy()
    )


def newer_parts(stored: Checkpoint, input_size: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments of `VisionTransformer` for parts of a file's encoder that no training option describes.

    They are normalized queries and keys, register tokens, the layer scale of networks with a bias of keys, and position
    tables whose rows before the patches do not match the class token. The dictionary is empty if there is no such part,
    and for dialects that never have one.

    Args:
        stored: the file, in the base naming of its dialect.
        input_size: image side, or height and width, of the network to build.

    Raises:
        CheckpointError: the file holds no encoder that plsc_mae can build, or the grid of its positions is unknown.
    """
    if not stored.dialect or (stored.dialect not in _VITS and stored.dialect != NATIVE.name):
        return {}
    rules = recognize(stored.model, str(stored.path))
    refuse_unsupported(stored.model, rules, str(stored.path))
    sizes = infer_encoder(stored.model, rules, str(stored.path))
    found: dict[str, Any] = {name: sizes[name] for name in ("qk_norm", "register_tokens") if sizes[name]}
    if sizes["layer_scale"] and sizes["k_bias"]:
        found["layer_scale"] = sizes["layer_scale"]
    table = stored.model.get(rules.foreign_name("encoder.pos_embed"))
    if table is not None:
        prefix = _fitting(stored, table, sizes, _trained_size(stored, sizes), input_size)[1]
        if prefix != int(sizes["class_token"]):
            found["prefix_positions"] = prefix
    return found


def normalization(stored: Checkpoint, channels: int) -> Normalize:
    """Return the normalization given by a Hugging Face folder or by stored options, else ImageNet's.

    Unless there is one value per channel, every channel gets the mean of the values.
    """
    options = _options(stored)
    halves = (INCEPTION_MEAN, INCEPTION_STD) if options.get("imagenet_inception_mean_and_std") else None
    mean, std = halves or (IMAGENET_MEAN, IMAGENET_STD)
    own = Normalize.for_channels(channels, options.get("mean") or mean, options.get("std") or std)
    return stated_normalize(stored, own)


def stated_normalize(stored: Checkpoint, own: Normalize) -> Normalize:
    """Return the normalization given by a Hugging Face folder, see `normalization`; else `own`."""
    statistics = stored_statistics(stored)
    return own if statistics is None else Normalize.for_channels(own.mean.shape[1], *statistics)


def stored_statistics(stored: Checkpoint) -> ImageStatistics | None:
    """Return the image statistics given by a Hugging Face folder; None for other files."""
    statistics = stored.meta.get("statistics")
    return statistics if isinstance(statistics, ImageStatistics) else None  # other files can have a table of this name


def _options(stored: Checkpoint) -> Mapping[str, Any]:
    options = stored.meta.get("args")
    return options if isinstance(options, dict) else {}
