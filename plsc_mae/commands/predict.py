"""`plsc-mae predict`: prints and can save the most probable classes or labels of images, or predicted numbers."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from paddle import Tensor

from plsc_mae.analysis.class_counts import count_classes, describe_missed
from plsc_mae.analysis.features import encode_images, require_finite_features
from plsc_mae.commands.pictures import find_pictures, true_outputs
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
from plsc_mae.wording import counted

COLUMNS = ("image", "rank", "class", "index")  # then "value", or "probability" and TRUE_CLASS
TRUE_CLASS = "true_class"
_KEYS = ('{"image": ', '"classes": [', '"indices": [')
SIGNS = {".csv": (",".join(COLUMNS),), ".json": _KEYS, ".jsonl": _KEYS}  # how a file of predictions is recognized

# The warning that a classifier does not distinguish images:
_FEWEST_EQUAL = 5  # images
_NEARLY_EQUAL = 0.02  # largest difference of a probability
_CONFIDENT = 0.9  # a larger probability for all images may be right, if they are of one class
_SHOWN = 20  # images whose predictions are printed if a file has all
_COMPARED = 100  # most probable classes

logger = logging.getLogger(__name__)


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
    """Predictions of the readable images and their indices, empty outside the main process; number of other images."""

    found: list[Prediction]
    indices: list[int]
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
    predictions, indices, unreadable = predict(trained, kind, images, world, config)
    if not world.is_main:
        return exit_code(unreadable)
    truth = None if kind.dense else true_outputs(images, config.img_path, trained.classes)[indices]
    if config.save_path:  # before printing, which fails if the reader of a pipe has ended
        names = None if truth is None else [trained.classes[i] if i >= 0 else None for i in truth.tolist()]
        save_predictions(Path(config.save_path), predictions, kind.values, names)
    shown = predictions[:_SHOWN] if config.save_path else predictions
    for prediction in shown:
        print(without_parents(prediction.image))
        for name, value in zip(prediction.classes, prediction.values, strict=True):
            print(f"  {kind.describe(value)}  {name}")
    if more := len(predictions) - len(shown):
        print(f"and {counted(more, 'image')} more")
    if config.save_path:
        print(config.save_path)
    if truth is not None:
        _count_right(predictions, truth, trained.classes)
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
    compared = topk if kind.dense else min(max(topk, _COMPARED), len(trained.classes))
    pixel_format, normalize = pixel_settings.choose_for(
        trained.normalize, config, config.model_path, images, trained.network.encoder.in_chans
    )

    def best(pixels: Tensor) -> dict[str, Tensor]:
        values, indices = kind.predict(trained.network(normalize(pixels)), compared)
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
        return Predictions([], [], len(unreadable))
    require_finite_features({kind.values: arrays["values"]}, config.model_path)
    if not kind.dense:
        warn_of_equal_predictions(arrays["indices"], arrays["values"])
        arrays = {name: array[:, :topk] for name, array in arrays.items()}
    rows = zip(kept.tolist(), arrays["indices"].astype(np.int64).tolist(), arrays["values"].tolist(), strict=True)
    found = [
        Prediction(images.name(i), [trained.classes[index] for index in indices], indices, values)
        for i, indices, values in rows
    ]
    return Predictions(found, kept.tolist(), len(unreadable))


def _count_right(predictions: list[Prediction], truth: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Print how many images of known class are right, and warn of classes that no image is classified as.

    Args:
        predictions: predictions of the images.
        truth: true class numbers of these images, -1 where they are unknown.
        names: names of all classes.
    """
    known = truth >= 0
    if not known.any():
        return
    predicted = np.array([found.indices[0] for found in predictions])
    counts = count_classes(truth[known], predicted[known], len(names))
    right, number = counts.correct.sum(), int(known.sum())
    images = counted(number, "image" if known.all() else "labeled image")
    print(f"{right} of {images} are right ({100 * right / number:.1f} %)")
    if missed := describe_missed(counts.images, counts.predicted, names):
        logger.warning("%s", missed)


def warn_of_equal_predictions(indices: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Warn if the most probable classes [n, k] of all images have nearly the same probabilities [n, k]."""
    order = np.argsort(indices, axis=1)
    classes, probabilities = (np.take_along_axis(array, order, axis=1) for array in (indices, values))
    difference = np.ptp(probabilities, axis=0).max()
    same = difference <= _NEARLY_EQUAL and (classes == classes[0]).all()
    if same and len(values) >= _FEWEST_EQUAL and values.max() <= _CONFIDENT:
        logger.warning(
            "all %d images get nearly the same probabilities (they differ by at most %.2g %%): this classifier does "
            "not distinguish them; `plsc-mae report RUN`, with the folder of its training, says whether it has learned "
            "anything",
            *(len(values), 100 * difference),
        )


def save_predictions(
    path: Path, predictions: list[Prediction], values: str, truth: Sequence[str | None] | None = None
) -> None:
    """Write predictions in the format of the suffix of `path`.

    .jsonl has one object per line and image, .json a list of these objects, .csv one row per image and class. A .csv
    with names that are not ASCII begins with a byte order mark, see `files.write_csv`.

    Args:
        path: the file.
        predictions: predictions of the images.
        values: "probabilities" or "values".
        truth: true class of each image, None where it is unknown; None for labels or numbers, without a true class.

    Raises:
        DataError: the file cannot be written, or exists and does not hold predictions.
    """
    last = () if truth is None else (TRUE_CLASS,)
    found = zip(predictions, strict=True) if truth is None else zip(predictions, truth, strict=True)
    try:
        with result_replacement(path, SIGNS[path.suffix]) as temporary:
            if path.suffix == ".csv":
                head = (*COLUMNS, {"probabilities": "probability"}.get(values, "value"), *last)
                rows = (
                    (image, rank, *row, *true)
                    for (image, *columns), *true in found
                    for rank, row in enumerate(zip(*columns, strict=True), start=1)
                )
                write_csv(temporary, itertools.chain([head], rows))
                return
            keys = ("image", "classes", "indices", values, *last)
            lines = [as_json(dict(zip(keys, (*each, *true), strict=True))) for each, *true in found]
            text = (
                "[\n" + ",\n".join(lines) + "\n]\n"
                if path.suffix == ".json"
                else "".join(f"{line}\n" for line in lines)
            )
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
