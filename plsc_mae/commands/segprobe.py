"""`plsc-mae segprobe`: measures the mean IoU of linear and k-NN segmentation on an encoder's frozen patch features."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.confusion import SegmentationScores, confusion_matrix, segmentation_scores
from plsc_mae.analysis.features import Encoded, TokenFeatures, encode_images, require_finite_features
from plsc_mae.analysis.fonts import drawable_names
from plsc_mae.analysis.knn import default_ks
from plsc_mae.analysis.patch_classifiers import (
    PatchClassifiers,
    fit_patch_classifiers,
    patch_labels,
    upsample_classes,
)
from plsc_mae.analysis.pictures import add_legend, class_colors, compose
from plsc_mae.commands.pictures import save_png
from plsc_mae.commands.results import require_free, summarize
from plsc_mae.config.features import SegprobeConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.display import Display
from plsc_mae.data.list_file import CLASSES_FILE, read_class_names
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.segmentation import (
    UNLABELED,
    MaskedImages,
    ResizeWhole,
    count_pixels,
    find_masked_images,
    read_mask,
)
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.files import MARK, result_replacement, write_csv
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers
from plsc_mae.wording import counted

PICTURE, JSON, CSV = "predictions.png", "results.json", "results.csv"
COLUMNS = ("index", "class", "val_pixels", "linear_iou", "knn_iou")
CSV_SIGN = ",".join(COLUMNS)  # identifies a file of this command
CLASSIFIERS = {"linear": "linear", "knn": "k-NN"}
DEFAULT_K = 20
HELD_OUT = 10  # every tenth training image is held out to choose the penalty
CHUNK = 256  # validation images whose features are in memory at a time
UNLABELED_COLOR = (255, 255, 255)

logger = logging.getLogger(__name__)


class Probe(NamedTuple):
    """The encoder of a probe, and how its images are read."""

    encode: TokenFeatures  # extractor of the patch features
    transform: ResizeWhole  # resizes an image to the input size of the encoder
    grid: tuple[int, int]  # (h, w) of the patches
    config: SegprobeConfig
    pixel_format: PixelFormat

    def features(self, data: MaskedImages) -> Encoded:
        """Encode the readable images; the only array of the result has their patch features [n, L, D].

        Raises:
            CheckpointError: a feature is not finite.
            DataError: no image can be read, or one cannot and --bad_image is error.
            ConfigError: a package that reads the images is not installed.
        """
        encoded = encode_images(
            self.encode,
            data.images,
            self.transform,
            World(self.config.device),
            batch_size=self.config.batch_size,
            num_workers=count_workers(self.config.num_workers),
            bad_image=self.config.bad_image,
            pixel_format=self.pixel_format,
        )
        require_finite_features(encoded.arrays, "the encoder")
        return encoded


class Evaluation(NamedTuple):
    """Confusion matrices [C, C] by classifier, the number of unreadable images, and the pictures by their titles."""

    confusion: dict[str, npt.NDArray[np.int64]]
    unreadable: int
    pictures: dict[str, list[npt.NDArray[np.uint8]]]


def run(config: SegprobeConfig) -> int:
    """Fit the classifiers to the training patches, segment the validation images, and print and save the scores.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: images, masks, class names or the file of --stats cannot be used, or a file cannot be written.
        ConfigError: an option does not fit the network, the images or this machine, or a package is not installed.
    """
    folder = Path(config.save_path)
    require_free(folder / PICTURE, folder / JSON)
    require_free(folder / CSV, signs=(CSV_SIGN,))
    train, val = (find_masked_images(config.data_path, split) for split in ("train", "val"))
    train = train.take(_spaced(len(train), config.max_train_images))
    network, normalize, origin = open_encoder(config)
    print(origin, flush=True)
    pixel_format, normalize = pixel_settings.choose_for(
        normalize, config, config.model_path, train.images, network.in_chans
    )
    names, pixels = _classes(config, train, val, pixel_format)
    encode = TokenFeatures(network, normalize, [len(network.blocks)], ["patch"], config.norm)
    probe = Probe(encode, ResizeWhole(network.img_size, config.interpolation), network.grid, config, pixel_format)
    classifiers, unreadable = _fit(probe, train, len(names))
    number, width = classifiers.bank.shape
    summary = {
        "encoder": origin,
        "train_images": len(train) - unreadable,
        "val_images": len(val),
        "train_patches": number,
        "l2": classifiers.l2,
        "nb_knn": classifiers.k,
    }
    print(
        f"{len(train) - unreadable} training and {counted(len(val), 'validation image')}, {len(names)} classes; "
        f"{number} training patches of {width} features",
        flush=True,
    )
    evaluation = _evaluate(probe, val, classifiers)
    scores = {name: segmentation_scores(counts) for name, counts in evaluation.confusion.items()}
    _print_table(names, pixels, scores)
    _save(folder, summary, names, pixels, scores)
    if config.num_pictures:
        _save_picture(folder / PICTURE, evaluation.pictures, names)
    print(folder)
    return summarize(unreadable + evaluation.unreadable, len(train) + len(val))


def _spaced(number: int, limit: int) -> npt.NDArray[np.int64]:
    """Return at most `limit` indices below `number`, evenly spaced."""
    count = min(number, limit)
    return np.arange(count) * number // max(count, 1)


def _classes(
    config: SegprobeConfig, train: MaskedImages, val: MaskedImages, pixel_format: PixelFormat
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Check the masks; return the names of the classes and the number of validation pixels of each, [C]."""
    default = Path(config.data_path) / CLASSES_FILE
    file = config.classes or (str(default) if default.is_file() else "")
    names = read_class_names(file) if file else ()
    counts = [count_pixels(data, config.ignore_index, len(names) or None, pixel_format) for data in (train, val)]
    names = names or tuple(map(str, range(max(map(len, counts)))))
    trained, tested = (np.pad(count, (0, len(names) - len(count))) for count in counts)
    if np.count_nonzero(trained) < 2 or not tested.any():
        present = np.flatnonzero(trained).tolist()
        raise DataError(
            f"beside --ignore_index {' '.join(map(str, config.ignore_index))}, the training masks of "
            f"{config.data_path} have the classes {present}, and the validation masks {tested.sum()} pixels; expected "
            "two classes and some pixels: replace 255 in masks of 0 and 255 by 1, or set another --ignore_index"
        )
    if untrained := [names[index] for index in np.flatnonzero((trained == 0) & (tested > 0))]:
        logger.warning("validation masks have classes without training pixels: %s", ", ".join(untrained))
    return names, tested


def _fit(probe: Probe, train: MaskedImages, num_classes: int) -> tuple[PatchClassifiers, int]:
    """Return the fitted classifiers and the number of unreadable training images."""
    config = probe.config
    encoded = probe.features(train)
    (features,) = encoded.arrays.values()
    masks = (read_mask(train.masks[number], config.ignore_index) for number in encoded.kept.tolist())
    labels = np.concatenate([patch_labels(mask, probe.grid, num_classes) for mask in masks])
    chosen = np.flatnonzero(labels != UNLABELED)
    if len(chosen) > config.max_train_patches:
        rng = np.random.default_rng(config.seed)
        chosen = np.sort(rng.choice(chosen, config.max_train_patches, replace=False))
    k = config.nb_knn or default_ks((DEFAULT_K,), len(chosen))[0]
    if len(chosen) < k:
        raise ConfigError(f"--nb_knn {k} exceeds the {len(chosen)} labeled training patches; lower it")
    held = chosen // features.shape[1] % HELD_OUT == HELD_OUT - 1
    rows = features.reshape(-1, features.shape[-1])[chosen]
    return fit_patch_classifiers(rows, labels[chosen], held, num_classes, k), len(encoded.unreadable)


def _evaluate(probe: Probe, val: MaskedImages, classifiers: PatchClassifiers) -> Evaluation:
    """Segment the validation images at the resolution of their masks; draw --num_pictures of them."""
    number, config = classifiers.num_classes, probe.config
    confusion = {name: np.zeros((number, number), np.int64) for name in CLASSIFIERS}
    drawn = set(_spaced(len(val), config.num_pictures).tolist())
    pictures: dict[str, list[npt.NDArray[np.uint8]]] = {}
    unreadable = 0
    for numbers in np.array_split(np.arange(len(val)), math.ceil(len(val) / CHUNK)):
        encoded = probe.features(val.take(numbers))
        unreadable += len(encoded.unreadable)
        (features,) = encoded.arrays.values()
        for image, patches in zip(numbers[encoded.kept].tolist(), features, strict=True):
            truth = read_mask(val.masks[image], config.ignore_index)
            scores = classifiers.scores(patches)
            for name, values in scores.items():
                predicted = upsample_classes(values, probe.grid, truth.shape)
                confusion[name] += confusion_matrix(truth, predicted, number)
            if image in drawn:
                for title, picture in _draw(probe, val.images.path(image), truth, scores, number):
                    pictures.setdefault(title, []).append(picture)
    return Evaluation(confusion, unreadable, pictures)


def _draw(
    probe: Probe, path: str, truth: npt.NDArray[np.int64], scores: Mapping[str, npt.NDArray[np.float32]], number: int
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield (title, picture) of image, truth and predictions at the encoder's input size."""
    size = probe.transform.size
    colors = np.concatenate([class_colors(number), [UNLABELED_COLOR]]).astype(np.uint8)  # the last one for UNLABELED
    image = open_image(path, pixel_format=probe.pixel_format).resize(size, probe.transform.interpolation)
    yield "image", Display.of(probe.pixel_format).draw_pixels(image)
    rows, columns = (np.arange(side) * full // side for side, full in zip(size, truth.shape, strict=True))
    yield "truth", colors[truth[rows[:, None], columns]]
    for name, title in CLASSIFIERS.items():
        yield title, colors[upsample_classes(scores[name], probe.grid, size)]


def _print_table(names: Sequence[str], pixels: npt.NDArray[np.int64], scores: Mapping[str, SegmentationScores]) -> None:
    """Print the IoU of each class that occurs or is predicted, the means, and the pixel accuracy."""
    width = max(14, *map(len, names))
    print(f"{'class':{width}}  {'pixels %':>9}" + "".join(f"  {title:>7}" for title in CLASSIFIERS.values()))
    for index, name in enumerate(names):
        values = [score.iou[index] for score in scores.values()]
        if not np.isnan(values).all():
            print(f"{name:{width}}  {100 * pixels[index] / pixels.sum():9.2f}" + "".join(map(_cell, values)))
    for title, values in {
        "mean IoU": [score.mean_iou for score in scores.values()],
        "pixel accuracy": [score.pixel_accuracy for score in scores.values()],
    }.items():
        print(f"{title:{width}}  {'':9}" + "".join(map(_cell, values)))


def _cell(value: float) -> str:
    return f"  {'-' if math.isnan(value) else f'{value:.2f}':>7}"


def _save(
    folder: Path,
    summary: Mapping[str, object],
    names: Sequence[str],
    pixels: npt.NDArray[np.int64],
    scores: Mapping[str, SegmentationScores],
) -> None:
    """Write the scores as JSON and as CSV, with null and an empty cell for classes without an IoU."""
    ious = {key: [None if math.isnan(iou) else iou for iou in score.iou.tolist()] for key, score in scores.items()}
    found = {
        key: {"mean_iou": score.mean_iou, "pixel_accuracy": score.pixel_accuracy, "iou": ious[key]}
        for key, score in scores.items()
    }
    content = {"origin": MARK, **summary, "classes": list(names), "val_pixels": pixels.tolist(), **found}
    try:
        with result_replacement(folder / JSON) as temporary:
            temporary.write_text(as_json(content, indent=1) + "\n", encoding="utf-8")
        columns = (range(len(names)), names, pixels.tolist(), ious["linear"], ious["knn"])
        with result_replacement(folder / CSV, (CSV_SIGN,)) as temporary:
            write_csv(temporary, [COLUMNS, *zip(*columns, strict=True)])
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; choose another --save_path") from None


def _save_picture(path: Path, pictures: Mapping[str, Sequence[npt.NDArray[np.uint8]]], names: Sequence[str]) -> None:
    """Write the panel of the drawn images with a legend of the classes in it; write nothing if none was readable."""
    if not pictures:
        return
    panel = compose({title: np.stack(stack) for title, stack in pictures.items()})
    maps = np.concatenate([np.stack(stack).reshape(-1, 3) for title, stack in pictures.items() if title != "image"])
    seen = {tuple(color) for color in np.unique(maps, axis=0).tolist()}
    colors = class_colors(len(names))
    present = [number for number, color in enumerate(colors.tolist()) if tuple(color) in seen]
    shown = drawable_names([names[number] for number in present], present)
    entries = {name: colors[number] for name, number in zip(shown, present, strict=True)}
    if UNLABELED_COLOR in seen:
        entries["(unlabeled)"] = np.array(UNLABELED_COLOR, np.uint8)
    save_png(add_legend(panel, entries), path, f"{MARK} segprobe")
