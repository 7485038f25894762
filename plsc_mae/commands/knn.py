"""`plsc-mae knn`: k-NN accuracy of the features of an encoder, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plsc_mae import weights
from plsc_mae.analysis.features import Encode, TokenFeatures, pixel_features, save_arrays
from plsc_mae.analysis.knn import KNNAccuracy, knn_accuracy
from plsc_mae.analysis.labeled import EncodedLists, LabeledFeatures, encode_labeled
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.tools import KNNConfig
from plsc_mae.data.classes import log_class_warnings
from plsc_mae.data.imagefolder import find_images, find_validation
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.loading import pixel_range
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.parallel.world import World
from plsc_mae.weights.finite import require_finite

BANK, QUERIES, TABLE = "train.npz", "val.npz", "output.txt"
TABLE_ENTRY = ">> "  # starts the entry of a network in the table


def run(config: KNNConfig) -> int:
    """Compute or load the features of both sets and print the k-NN accuracies.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint or the saved features cannot be read.
        DataError: a set of images is missing or has no labels, or a query has a class that the bank lacks.
        ConfigError: --nb_knn exceeds the number of images in the bank.
    """
    world = World(config.device)
    results = Path(config.save_path)
    if config.save_path:
        require_free(results / BANK, results / QUERIES)
        require_free(results / TABLE, signs=(TABLE_ENTRY,))
    name, (parts, unreadable) = _loaded(config) if config.load_path else _computed(config, world)
    if not world.is_main:
        return exit_code(unreadable)
    bank, queries = parts
    if config.save_path:
        for file, part in ((BANK, bank), (QUERIES, queries)):
            save_arrays(results / file, {"features": part.features, "labels": part.labels})
    classes = len(np.unique(bank.labels))
    print(
        f"{len(bank.labels)} images in the bank, {len(queries.labels)} queries, {bank.features.shape[1]} features, "
        f"{classes} classes: chance {100 / classes:.1f} %"
    )
    accuracies = knn_accuracy(*bank, *queries, config.nb_knn, config.temperature)
    print("    k   top-1   top-5")
    for k, top1, top5 in accuracies:
        print(f"{k:5d}  {top1:6.2f}  {top5:6.2f}")
    if config.save_path:
        _append(results / TABLE, name, accuracies)
    return summarize(unreadable, len(bank.labels) + len(queries.labels) + unreadable)


def _computed(config: KNNConfig, world: World) -> tuple[str, EncodedLists]:
    """Return the name of the features, and those of the bank and the queries."""
    bank = find_images(config.data_path, "train")
    lists = (bank, find_validation(bank, config.data_path, config.eval_data_path))
    log_class_warnings(bank)
    origins = [config.model_path] if config.model_path else []
    encode: Encode
    if config.input_size is not None and config.pixels:
        size, name, encode = (config.input_size[0], config.input_size[-1]), "raw pixels", pixel_features
        reading = pixel_range.choose(config, origins, bank)
    else:
        network, normalize, name = open_encoder(config)
        reading = pixel_range.choose(config, origins, bank, network.in_chans)
        normalize = pixel_range.override_normalize(normalize, reading)
        size = network.img_size
        encode = TokenFeatures(network, normalize, [len(network.blocks)], [config.pooled], config.norm)
    if world.is_main:
        print(name)
    parts, unreadable = encode_labeled(encode, lists, size, config, world, pixel_format=reading.pixel_format)
    if (
        config.pixels and world.is_main
    ):  # pixels are not negative, so without centering all images have similar directions
        mean = parts[0].features.mean(axis=0)
        parts = [LabeledFeatures(features - mean, labels) for features, labels in parts]
    return name, EncodedLists(parts, unreadable)


def _loaded(config: KNNConfig) -> tuple[str, EncodedLists]:
    parts = []
    for file in (BANK, QUERIES):
        path = Path(config.load_path) / file
        arrays = weights.read(path).tensors
        if not {"features", "labels"} <= set(arrays):
            raise DataError(f"{path} has no features and labels; expected a folder of `plsc-mae knn --save_path`")
        require_finite(arrays, str(path), "compute the features again")
        parts.append(LabeledFeatures(arrays["features"], arrays["labels"]))
    if parts[0].features.shape[1:] != parts[1].features.shape[1:]:
        raise ConfigError(f"--load_path {config.load_path}: {BANK} and {QUERIES} are of different networks")
    return config.load_path, EncodedLists(parts, 0)


def _append(path: Path, name: str, accuracies: list[KNNAccuracy]) -> None:
    """Append the accuracies to a file in the format of MAE-priv."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{TABLE_ENTRY}{name}\n")
        file.writelines(f"{k}\t{top1}\t{top5}\n" for k, top1, top5 in accuracies)
