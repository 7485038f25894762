"""`plsc-mae extract`: writes the features of images at chosen layers of an encoder to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.features import Arrays, TokenFeatures, encode_images, require_finite_features, save_arrays
from plsc_mae.analysis.labeled import center_crop
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.tools import EmbedConfig, ExtractConfig
from plsc_mae.data.imagefolder import ImageList, find_images
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_range
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers


class Features(NamedTuple):
    """Features of the readable images of a list.

    Attributes:
        arrays: {"layer12/cls": float32 [n, D], "layer12/patch": [n, L, D], ...}; empty outside the main process.
        paths: n paths relative to the list's folder.
        labels: class numbers [n], -1 for unlabeled images.
        classes: class names; empty for unlabeled images.
        unreadable: number of images that could not be read.
        origin: sentence about the weights.
    """

    arrays: Arrays
    paths: list[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    unreadable: int
    origin: str


def run(config: ExtractConfig) -> int:
    """Compute the features and write them with labels, paths and class names; raise as `compute` and `save` do.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.
    """
    world = World(config.device)
    require_free(Path(config.save_path))
    features = compute(config, world)
    if not world.is_main:
        return exit_code(features.unreadable)
    return save(config, features)


def compute(config: EmbedConfig, world: World, images: ImageList | None = None) -> Features:
    """Compute the features of every readable image; all processes must call.

    Args:
        config: options of the encoder and of the images.
        world: processes that share the work.
        images: images in place of those of --data_path, all of which must be readable; None lists those of
            --data_path.

    Raises:
        CheckpointError: the checkpoint cannot be read, or a feature is not finite.
        DataError: there are no images, none can be decoded, or one of `images` cannot.
        ConfigError: the encoder lacks a layer of --layers.
    """
    listed = find_images(config.data_path, config.split) if images is None else images
    network, normalize, origin = open_encoder(config)
    reading = pixel_range.choose(config, [config.model_path], listed, network.in_chans)
    normalize = pixel_range.override_normalize(normalize, reading)
    layers = _resolve(config.layers, len(network.blocks))
    arrays, kept, unreadable = encode_images(
        TokenFeatures(network, normalize, layers, tuple(dict.fromkeys(config.tokens)), config.norm),
        listed,
        center_crop(config, network.img_size),
        world,
        batch_size=config.batch_size,
        num_workers=count_workers(config.num_workers),
        bad_image="skip" if images is None else "error",
        pixel_format=reading.pixel_format,
    )
    require_finite_features(arrays, config.model_path)
    paths = [listed.name(i) for i in kept.tolist()]
    return Features(arrays, paths, listed.labels[kept], listed.classes, len(unreadable), origin)


def save(config: ExtractConfig, features: Features) -> int:
    """Write features to --save_path, print what the file holds, and return the exit code of `run`.

    Raises:
        DataError: the file cannot be written.
    """
    arrays = dict(features.arrays)
    print(features.origin)
    for name, array in arrays.items():
        print(f"{name} {list(array.shape)}")
    texts = {"paths": features.paths}
    if features.classes:
        arrays["labels"], texts["classes"] = features.labels, list(features.classes)
    save_arrays(config.save_path, arrays, texts)
    print(config.save_path)
    return summarize(features.unreadable, len(features.paths) + features.unreadable)


def _resolve(layers: Sequence[int], depth: int) -> list[int]:
    """Return `layers` counted from 0, without duplicates; -1 is the last of `depth` blocks."""
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(
                f"--layers {layer}: the encoder has {depth} blocks; expected 0 to {depth}, or -1 for the last"
            )
    return list(dict.fromkeys(layer % (depth + 1) for layer in layers))
