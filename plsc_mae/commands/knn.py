"""`plsc-mae knn`: k-NN accuracy of the features of an encoder, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc_mae import weights
from plsc_mae.analysis.classification import TOP
from plsc_mae.analysis.feature_files import save_arrays
from plsc_mae.analysis.feature_store import FeatureStore, identify
from plsc_mae.analysis.features import Encode, Rows, RowsInMemory, TokenFeatures, pixel_features
from plsc_mae.analysis.knn import DEFAULT_KS, KNNAccuracy, default_ks, knn_accuracy
from plsc_mae.analysis.labeled import EncodedLists, LabeledFeatures, encode_labeled
from plsc_mae.commands.feature_pictures import ImageFeatures, save_neighbors
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.features import KNNConfig
from plsc_mae.data.classes import log_class_warnings
from plsc_mae.data.display import RGB_DISPLAY, Display
from plsc_mae.data.imagefolder import ImageList, find_images, find_validation
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.parallel.world import World
from plsc_mae.weights.finite import require_finite
from plsc_mae.wording import counted

BANK, QUERIES, TABLE, PICTURE = "train.npz", "val.npz", "output.txt", "neighbors.png"
TABLE_ENTRY = ">> "  # starts the entry of a network in the table


class Found(NamedTuple):
    """Features of the bank and of the queries."""

    name: str  # description of the features
    encoded: EncodedLists  # the features
    lists: Sequence[ImageList] = ()  # images of the bank and of the queries; empty for features that were loaded
    pixel_format: PixelFormat = RGB
    display: Display = RGB_DISPLAY  # the channels that pictures show
    stores: Sequence[FeatureStore] = ()  # folders of the features until they are saved


def run(config: KNNConfig) -> int:
    """Compute or load the features of both sets, print the k-NN accuracies, and save what the options ask for.

    With --save_path, the features of an encoder are kept on disk, and the same command continues after a kill.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint cannot be used, or saved features cannot be read.
        DataError: images, labels, saved features or the file of --stats cannot be used, or a result cannot be written.
        FolderError: another process writes features to --save_path.
        ConfigError: an option does not fit the network, the images, the saved features or this machine, or a package is
            not installed.
    """
    world = World(config.device)
    results = Path(config.save_path)
    if config.save_path:
        require_free(results / BANK, results / QUERIES, *([results / PICTURE] if config.num_pictures else []))
        require_free(results / TABLE, signs=(TABLE_ENTRY,))
    found = _loaded(config) if config.load_path else _computed(config, world)
    parts, unreadable = found.encoded.parts, found.encoded.unreadable
    if not world.is_main:
        return exit_code(unreadable)
    bank, queries = parts
    if config.save_path:
        for file, part in ((BANK, bank), (QUERIES, queries)):
            save_arrays(results / file, {"features": part.features, "labels": part.labels})
        for store in found.stores:
            store.remove()
    classes = len(np.unique(bank.labels))
    print(
        f"{counted(len(bank.labels), 'image')} in the bank, {counted(len(queries.labels), 'query')}, "
        f"{bank.features.shape[1]} features, {counted(classes, 'class')}: chance {100 / classes:.1f} %\n"
        f"{queries.describe_majority(found.lists[1].classes if found.lists else ())}",
        flush=True,
    )
    ks = config.nb_knn or default_ks(DEFAULT_KS, len(bank.labels))
    accuracies = knn_accuracy(*bank, *queries, ks, config.temperature)
    _print_table(accuracies, classes)
    if config.save_path:
        _append(results / TABLE, found.name, accuracies)
    if config.num_pictures:
        print(_save_picture(results / PICTURE, found, config.num_pictures))
    return summarize(unreadable, len(bank.labels) + len(queries.labels) + unreadable)


def _print_table(accuracies: Sequence[KNNAccuracy], classes: int) -> None:
    """Print the accuracies, without top-5 if there are at most TOP classes."""
    has_top5 = classes > TOP
    print("    k   top-1" + ("   top-5" if has_top5 else f"   (no top-5: there are only {counted(classes, 'class')})"))
    for k, top1, top5 in accuracies:
        print(f"{k:5d}  {top1:6.2f}" + (f"  {top5:6.2f}" if has_top5 else ""))


def _computed(config: KNNConfig, world: World) -> Found:
    """Compute the features of the bank and the queries; all processes must call."""
    bank = find_images(config.data_path, "train")
    lists = (bank, find_validation(bank, config.data_path, config.eval_data_path))
    log_class_warnings(bank)
    encode: Encode
    if config.input_size is not None and config.pixels:
        size, name, encode = (config.input_size[0], config.input_size[-1]), "raw pixels", pixel_features
        pixel_format = pixel_settings.choose(config, [], bank).pixel_format
    else:
        network, normalize, name = open_encoder(config)
        pixel_format, normalize = pixel_settings.choose_for(
            normalize, config, config.model_path, bank, network.in_chans
        )
        size = network.img_size
        encode = TokenFeatures(network, normalize, [len(network.blocks)], [config.pooled], config.norm)
    display = pixel_settings.display_of(pixel_format, config.picture_bands)
    if world.is_main:
        print(name, flush=True)
    stores: list[FeatureStore] = []

    def destination(images: ImageList) -> Rows:
        """Return the destination of the features of a list: a folder in --save_path, or memory."""
        if not isinstance(encode, TokenFeatures) or not config.save_path or not world.is_main:
            return RowsInMemory(config.dtype if isinstance(encode, TokenFeatures) else "float32")
        folder = Path(config.save_path) / (BANK if images is bank else QUERIES)
        identity = identify(config, encode, images, world, pixel_format)
        stores.append(FeatureStore(folder.with_suffix(".partial"), identity, config.dtype))
        return stores[-1]

    encoded = encode_labeled(encode, lists, size, config, world, pixel_format=pixel_format, rows=destination)
    if config.pixels and world.is_main:
        # Pixels are not negative, so without centering all images have similar directions.
        mean = encoded.parts[0].features.mean(axis=0)
        centered = [LabeledFeatures(features - mean, labels) for features, labels in encoded.parts]
        encoded = encoded._replace(parts=centered)
    return Found(name, encoded, lists, pixel_format, display, stores)


def _save_picture(path: Path, found: Found, count: int) -> Path:
    """Write a picture of up to `count` queries with their nearest neighbors in the bank, and return its path."""
    bank, queries = (
        ImageFeatures(part.features, images, kept, found.pixel_format, found.display)
        for part, images, kept in zip(found.encoded.parts, found.lists, found.encoded.kept, strict=True)
    )
    return save_neighbors(path, "knn", queries, bank, count)


def _loaded(config: KNNConfig) -> Found:
    parts = []
    for file in (BANK, QUERIES):
        path = Path(config.load_path) / file
        arrays = weights.read(path).tensors
        if not {"features", "labels"} <= set(arrays):
            raise DataError(f"{path} has no features and labels; expected a folder of `plsc-mae knn --save_path`")
        require_finite(arrays, str(path), "compute the features again")
        features, labels = arrays["features"], arrays["labels"]
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise DataError(
                f"{path} has features {list(features.shape)} and labels {list(labels.shape)}; expected a row of "
                "features for each label: compute them again"
            )
        parts.append(LabeledFeatures(features, labels))
    if parts[0].features.shape[1:] != parts[1].features.shape[1:]:
        raise ConfigError(f"--load_path {config.load_path}: {BANK} and {QUERIES} come from different networks")
    return Found(config.load_path, EncodedLists(parts, 0))


def _append(path: Path, name: str, accuracies: list[KNNAccuracy]) -> None:
    """Append the accuracies to a file in the format of MAE-priv."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{TABLE_ENTRY}{name}\n")
            file.writelines(f"{k}\t{top1}\t{top5}\n" for k, top1, top5 in accuracies)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
