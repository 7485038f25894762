"""`plsc-mae extract`: writes the features of images at chosen layers of an encoder to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.feature_files import require_writer, save_arrays
from plsc_mae.analysis.feature_store import FeatureStore, identify
from plsc_mae.analysis.features import Arrays, RowsInMemory, TokenFeatures, encode_images, require_finite_features
from plsc_mae.analysis.labeled import center_crop
from plsc_mae.analysis.thumbnails import require_package
from plsc_mae.commands.feature_pictures import ImageFeatures, map_path, neighbors_path, save_maps, save_neighbors
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.features import EmbedConfig, ExtractConfig
from plsc_mae.data.display import Display
from plsc_mae.data.imagefolder import ImageList, find_images
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers
from plsc_mae.wording import counted


class Features(NamedTuple):
    """Features of the readable images of a list."""

    # {"layer12/cls": [n, D], "layer12/patch": [n, L, D], ...} of type --dtype; empty outside the main process
    arrays: Arrays
    images: ImageList
    kept: npt.NDArray[np.int64]  # indices [n] of the readable images in the list
    unreadable: int  # number of images that could not be read
    origin: str  # sentence about the weights
    pixel_format: PixelFormat
    display: Display  # the channels that pictures show
    # folder of the features until they are saved; None for features in memory and outside the main process
    store: FeatureStore | None

    @property
    def paths(self) -> list[str]:
        """Paths of the n images relative to the list's folder, see `ImageList.name`."""
        return [self.images.name(i) for i in self.kept.tolist()]


def run(config: ExtractConfig) -> int:
    """Compute the features and write them with paths and, if the images have classes, labels and class names.

    After a kill, the same command continues after the images whose features are on disk. For the errors see
    `check_destination`, `compute` and `save`.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.
    """
    world = World(config.device)
    check_destination(config)
    path = Path(config.save_path)
    features = compute(config, world, folder=path.with_suffix(".partial"))
    if not world.is_main:
        return exit_code(features.unreadable)
    return save(config, features)


def check_destination(config: ExtractConfig) -> None:
    """Check before the computation that packages are installed and that no foreign file would be replaced.

    Raises:
        ConfigError: a package that --save_path or --map needs is not installed.
        DataError: a file exists that is not an earlier result, or cannot be examined.
    """
    path = Path(config.save_path)
    require_writer(path)
    for method in config.map:
        require_package(method)
    require_free(path, *_pictures(config))


def _pictures(config: ExtractConfig) -> list[Path]:
    path = Path(config.save_path)
    return [*([neighbors_path(path)] if config.num_pictures else []), *(map_path(path, each) for each in config.map)]


def compute(config: EmbedConfig, world: World, images: ImageList | None = None, folder: Path | None = None) -> Features:
    """Compute the features of every readable image; all processes must call.

    Args:
        config: options of the encoder and of the images.
        world: processes that share the work.
        images: images in place of those of --data_path; all of them must be readable. None lists those of --data_path.
        folder: folder that keeps the features while they are computed; None keeps them in memory.

    Raises:
        CheckpointError: the checkpoint cannot be used, or a feature is not finite.
        DataError: images, the folder or the file of --stats cannot be used.
        FolderError: another process writes to the folder.
        ConfigError: an option does not fit the network or the images, or a package is not installed.
    """
    listed = find_images(config.data_path, config.split) if images is None else images
    network, normalize, origin = open_encoder(config)
    pixel_format, normalize = pixel_settings.choose_for(normalize, config, config.model_path, listed, network.in_chans)
    bands = config.picture_bands if isinstance(config, ExtractConfig) else None
    display = pixel_settings.display_of(pixel_format, bands)
    layers = _resolve(config.layers, len(network.blocks))
    encode = TokenFeatures(network, normalize, layers, tuple(dict.fromkeys(config.tokens)), config.norm)
    store = None
    if folder is not None and world.is_main:
        store = FeatureStore(folder, identify(config, encode, listed, world, pixel_format), config.dtype)
    world.barrier()  # the digests may take longer than the timeout of a reduction
    arrays, kept, unreadable = encode_images(
        encode,
        listed,
        center_crop(config, network.img_size),
        world,
        batch_size=config.batch_size,
        num_workers=count_workers(config.num_workers),
        bad_image=config.bad_image if images is None else "error",
        pixel_format=pixel_format,
        rows=store or RowsInMemory(config.dtype),
    )
    require_finite_features(arrays, config.model_path)
    return Features(arrays, listed, kept, len(unreadable), origin, pixel_format, display, store)


def save(config: ExtractConfig, features: Features) -> int:
    """Write features to --save_path, draw pictures, print the files, and return the exit code of `run`.

    Raises:
        DataError: a file cannot be written, a picture cannot be drawn, or there are too few images for a picture.
        ConfigError: a package is not installed.
    """
    arrays, images = dict(features.arrays), features.images
    print(features.origin)
    for name, array in arrays.items():
        print(f"{name} {list(array.shape)}")
    paths = features.paths
    texts = {"paths": paths}
    if images.classes:
        arrays["labels"], texts["classes"] = images.labels[features.kept], list(images.classes)
    save_arrays(config.save_path, arrays, texts)
    print(config.save_path)
    _draw(config, features)
    if features.store is not None:
        features.store.remove()
    return summarize(features.unreadable, len(paths) + features.unreadable)


def _draw(config: ExtractConfig, features: Features) -> None:
    """Draw the pictures that the options ask for, from the last array that has one vector per image."""
    if not config.num_pictures and not config.map:
        return
    path, array = Path(config.save_path), [array for array in features.arrays.values() if array.ndim == 2][-1]
    found = ImageFeatures(array, features.images, features.kept, features.pixel_format, features.display)
    if config.num_pictures:
        print(save_neighbors(neighbors_path(path), "extract", found, found, config.num_pictures))
    if config.map:
        for written in save_maps(path, "extract", found, config.map, config.map_images, config.seed):
            print(written)


def _resolve(layers: Sequence[int], depth: int) -> list[int]:
    """Return `layers` without duplicates, negative ones counted from the last; raise ConfigError if out of range."""
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(
                f"--layers {layer}: the encoder has {counted(depth, 'block')}; expected 0 to {depth}, or -1 for the "
                "last"
            )
    return list(dict.fromkeys(layer % (depth + 1) for layer in layers))
