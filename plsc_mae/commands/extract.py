"""`plsc-mae extract`: writes the features of images at chosen layers of an encoder to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plsc_mae.analysis.features import TokenFeatures, encode_images, require_finite_features, save_arrays
from plsc_mae.analysis.labeled import center_crop
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.tools import ExtractConfig
from plsc_mae.data.imagefolder import find_images
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_range
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers


def run(config: ExtractConfig) -> int:
    """Compute the features and write them with labels, paths and class names.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: there are no images, none can be decoded, or the file cannot be written.
        ConfigError: the encoder lacks a layer of --layers.
    """
    world = World(config.device)
    require_free(Path(config.save_path))
    images = find_images(config.data_path, config.split)
    network, normalize, origin = load_encoder(
        config.model_path,
        model_key=config.model_key,
        model_prefix=config.model_prefix,
        num_heads=config.num_heads,
        input_size=config.input_size,
        random_weights=config.random_weights,
        seed=config.seed,
    )
    layers = _resolve(config.layers, len(network.blocks))
    arrays, kept, unreadable = encode_images(
        TokenFeatures(network, normalize, layers, tuple(dict.fromkeys(config.tokens)), config.norm),
        images,
        center_crop(config, network.img_size),
        world,
        batch_size=config.batch_size,
        num_workers=count_workers(config.num_workers),
        pixel_range=pixel_range.choose(config.pixel_range, [config.model_path], images),
    )
    if not world.is_main:
        return exit_code(len(unreadable))
    require_finite_features(arrays, config.model_path)
    print(origin)
    for name, array in arrays.items():
        print(f"{name} {list(array.shape)}")
    texts = {"paths": [images.name(i) for i in kept.tolist()]}
    if images.classes:
        arrays["labels"], texts["classes"] = images.labels[kept], list(images.classes)
    save_arrays(config.save_path, arrays, texts)
    print(config.save_path)
    return summarize(len(unreadable), len(images))


def _resolve(layers: Sequence[int], depth: int) -> list[int]:
    """Return `layers` counted from 0, without duplicates; -1 is the last of `depth` blocks."""
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(
                f"--layers {layer}: the encoder has {depth} blocks; expected 0 to {depth}, or -1 for the last"
            )
    return list(dict.fromkeys(layer % (depth + 1) for layer in layers))
