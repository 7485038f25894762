"""`plsc-mae fewshot`: measures the accuracy that an encoder's features reach with few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plsc_mae.analysis.features import TokenFeatures
from plsc_mae.analysis.few_shot import Budget, Estimate, few_shot_accuracies, make_choices
from plsc_mae.analysis.labeled import encode_labeled
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.features import FewshotConfig
from plsc_mae.data.classes import log_class_warnings
from plsc_mae.data.few_labels import union
from plsc_mae.data.imagefolder import find_images, find_validation, subset
from plsc_mae.errors import DataError
from plsc_mae.files import result_replacement, write_csv
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.wording import counted

COLUMNS = ("labels", "images", "accuracy", "margin")  # then an accuracy per seed
SIGNS = {".csv": (",".join(COLUMNS),), ".json": ('"labels": "', '"accuracies": [')}


def run(config: FewshotConfig) -> int:
    """Print and, with --save_path, write the accuracy for every number or share of labels.

    Only the chosen training images and the validation images are encoded.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: images, labels or the file of --stats cannot be used, a class has too few training images, or the
            result cannot be written.
        ConfigError: an option does not fit the network, the images or this machine, or a package is not installed.
    """
    world = World(config.device)
    path = Path(config.save_path)
    if config.save_path:
        require_free(path, signs=SIGNS[path.suffix])
    train = find_images(config.data_path, "train")
    val = find_validation(train, config.data_path, config.eval_data_path)
    log_class_warnings(train)
    choices = make_choices(train, config.shots or (), config.fractions or (), config.label_seeds)
    used = union([rows for each in choices.values() for rows in each])
    network, normalize, origin = open_encoder(config)
    pixel_format, normalize = pixel_settings.choose_for(normalize, config, config.model_path, train, network.in_chans)
    if world.is_main:
        print(origin)
    encoded = encode_labeled(
        TokenFeatures(network, normalize, [len(network.blocks)], [config.pool], config.norm),
        (subset(train, used), val),
        network.img_size,
        config,
        world,
        pixel_format=pixel_format,
    )
    if not world.is_main:
        return exit_code(encoded.unreadable)
    bank, queries = encoded.parts
    classes = len(np.unique(train.labels))
    print(
        f"{counted(len(train), 'training image')}, {counted(len(queries.labels), 'validation image')}, "
        f"{counted(classes, 'class')}: chance {100 / classes:.1f} %; "
        f"{counted(len(config.label_seeds), 'choice')} of labels\n"
        f"{queries.describe_majority(val.classes)}"
    )
    print(f"{'labels':>14}  {'images':>7}  top-1")
    accuracies: dict[Budget, list[float]] = {}
    for budget, rows in choices.items():
        accuracies |= few_shot_accuracies(bank, used[encoded.kept[0]], queries, {budget: rows})
        print(f"{budget!s:>14}  {len(rows[0]):7d}  {Estimate.of(accuracies[budget])}", flush=True)
    if config.save_path:
        _write(path, {budget: len(rows[0]) for budget, rows in choices.items()}, accuracies, config.label_seeds)
        print(path)
    return summarize(encoded.unreadable, len(used) + len(val))


def _write(
    path: Path, images: Mapping[Budget, int], accuracies: Mapping[Budget, Sequence[float]], seeds: Sequence[int]
) -> None:
    """Write the accuracies of every budget and seed as .csv or .json."""
    try:
        with result_replacement(path, SIGNS[path.suffix]) as temporary:
            estimates = {budget: Estimate.of(values) for budget, values in accuracies.items()}
            if path.suffix == ".csv":
                rows = [
                    [budget, images[budget], mean, "" if np.isnan(margin) else margin, *accuracies[budget]]
                    for budget, (mean, margin) in estimates.items()
                ]
                write_csv(temporary, [[*COLUMNS, *(f"seed_{seed}" for seed in seeds)], *rows])
                return
            entries = [
                {
                    "labels": str(budget),
                    "images": images[budget],
                    "accuracy": mean,
                    "margin": None if np.isnan(margin) else margin,
                    "seeds": list(seeds),
                    "accuracies": list(accuracies[budget]),
                }
                for budget, (mean, margin) in estimates.items()
            ]
            temporary.write_text(as_json(entries, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
