"""`plsc-mae predict`: prints and can save the most probable classes or labels of images, or predicted numbers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from paddle import Tensor

from plsc_mae.analysis.features import encode_images, require_finite_features
from plsc_mae.commands.pictures import find_pictures
from plsc_mae.commands.results import exit_code, require_free, summarize
from plsc_mae.config.inference import PredictConfig
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.errors import DataError
from plsc_mae.files import result_replacement, write_csv
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.classifier import LoadedClassifier, open_predictor
from plsc_mae.methods.label_kinds import LabelKind
from plsc_mae.names import as_json, without_parents
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers

COLUMNS = ("image", "rank", "class", "index")  # then "probability" or "value"
_KEYS = ('{"image": ', '"classes": [', '"indices": [')
SIGNS = {".csv": (",".join(COLUMNS),), ".json": _KEYS, ".jsonl": _KEYS}  # how a file of predictions is recognized


class Prediction(NamedTuple):
    """The most probable classes or labels of an image, the best first, or all predicted numbers in order.

    The field names are the keys in .json and .jsonl files, where `values` has the name of `LabelKind.values`. The image
    is named as `plsc_mae.names.escape_name` writes its path.
    """

    image: str
    classes: list[str]
    indices: list[int]
    values: list[float]


class Predictions(NamedTuple):
    """Predictions of the readable images, empty outside the main process, and the number of the other images."""

    found: list[Prediction]
    unreadable: int


def run(config: PredictConfig) -> int:
    """Predict the labels of the images, print them and, with --save_path, write them.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint cannot be used, or has no classifier.
        DataError: images, or the files of --classes or --stats, cannot be used, or the result cannot be written.
        ConfigError: an option does not fit the network, the images or this machine, or a package is not installed.
    """
    world = World(config.device)
    if config.save_path:
        require_free(Path(config.save_path), signs=SIGNS[Path(config.save_path).suffix])
    images = find_pictures(config.img_path)
    trained, kind = open_predictor(config)
    if world.is_main:
        print(trained.origin)
    predictions, unreadable = predict(trained, kind, images, world, config)
    if not world.is_main:
        return exit_code(unreadable)
    if config.save_path:  # before printing, which fails if the reader of a pipe has ended
        save_predictions(Path(config.save_path), predictions, kind.values)
    for prediction in predictions:
        print(without_parents(prediction.image))
        for name, value in zip(prediction.classes, prediction.values, strict=True):
            print(f"  {kind.describe(value)}  {name}")
    if config.save_path:
        print(config.save_path)
    return summarize(unreadable, len(images))


def predict(
    trained: LoadedClassifier, kind: LabelKind, images: ImageList, world: World, config: PredictConfig
) -> Predictions:
    """Predict the labels of every readable image, in order; all processes must call.

    Raises:
        CheckpointError: a prediction is NaN or infinite.
        DataError: no image can be read, one cannot and --bad_image is error, or the file of --stats cannot be used.
        ConfigError: an option does not fit the network or the images, or a package is not installed.
    """
    topk = min(config.topk, len(trained.classes))
    pixel_format, normalize = pixel_settings.choose_for(
        trained.normalize, config, config.model_path, images, trained.network.encoder.in_chans
    )

    def best(pixels: Tensor) -> dict[str, Tensor]:
        values, indices = kind.predict(trained.network(normalize(pixels)), topk)
        return {"values": values, "indices": indices.astype("float32")}  # exact up to 2 ** 24

    arrays, kept, unreadable = encode_images(
        best,
        images,
        trained.transform,
        world,
        batch_size=config.batch_size,
        num_workers=0 if len(images) <= config.batch_size else count_workers(config.num_workers),
        bad_image=config.bad_image,
        pixel_format=pixel_format,
    )
    if not arrays:
        return Predictions([], len(unreadable))
    require_finite_features({kind.values: arrays["values"]}, config.model_path)
    rows = zip(kept.tolist(), arrays["indices"].astype(np.int64).tolist(), arrays["values"].tolist(), strict=True)
    found = [
        Prediction(images.name(i), [trained.classes[index] for index in indices], indices, values)
        for i, indices, values in rows
    ]
    return Predictions(found, len(unreadable))


def save_predictions(path: Path, predictions: list[Prediction], values: str) -> None:
    """Write predictions in the format of the suffix of `path`.

    .jsonl has one object per line and image, .json a list of these objects, .csv one row per image and class. A .csv
    with names that are not ASCII begins with a byte order mark, see `files.write_csv`.

    Args:
        path: the file.
        predictions: predictions of the images.
        values: "probabilities" or "values".

    Raises:
        DataError: the file cannot be written, or exists and does not hold predictions.
    """
    try:
        with result_replacement(path, SIGNS[path.suffix]) as temporary:
            if path.suffix == ".csv":
                head = (*COLUMNS, {"probabilities": "probability"}.get(values, "value"))
                rows = (
                    (image, rank, *row)
                    for image, *columns in predictions
                    for rank, row in enumerate(zip(*columns, strict=True), start=1)
                )
                write_csv(temporary, itertools.chain([head], rows))
                return
            keys = ("image", "classes", "indices", values)
            lines = [as_json(dict(zip(keys, each, strict=True))) for each in predictions]
            text = (
                "[\n" + ",\n".join(lines) + "\n]\n"
                if path.suffix == ".json"
                else "".join(f"{line}\n" for line in lines)
            )
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
