"""Images, data sets and loaders of `plsc-mae finetune` and `plsc-mae linprobe`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plsc_mae.analysis.features import FeatureDataset, encode_dataset, require_finite_features
from plsc_mae.config import ClassifyConfig, LinprobeConfig
from plsc_mae.data.cifar import CifarDataset, CifarImages, read_cifar
from plsc_mae.data.classes import ClassOrder, label_warnings, log_class_warnings
from plsc_mae.data.evaluation import EvaluationDataset
from plsc_mae.data.few_labels import Rows, fraction, fraction_of_all
from plsc_mae.data.imagefolder import (
    GivenImages,
    ImageDataset,
    ImageList,
    find_images,
    find_validation,
    require_classes,
    subset,
)
from plsc_mae.data.label_table import label_notes, label_table, match_labels, read_labels
from plsc_mae.data.loader import BatchLoader, KeyedDataset, build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transforms import Transform
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.class_names import Head, number_by_outputs
from plsc_mae.loading.eval_sets import EvaluationPart, Source, find_parts
from plsc_mae.methods.classify import build_normalize, train_transform, validation_transform
from plsc_mae.methods.label_kinds import KINDS, BalancedClasses, LabelKind
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.parallel.world import World
from plsc_mae.pipeline.data import SizeOnlyDataset
from plsc_mae.runtime import count_workers
from plsc_mae.train.data_check import check_data
from plsc_mae.train.setup import training_loader
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

LabeledImages = ImageList | CifarImages


class Images(NamedTuple):
    """Labeled images of a run, and the outputs of its classifier."""

    train: LabeledImages | None  # training images; None if the classifier is only evaluated
    val: LabeledImages | None  # validation images; None if the classifier is only trained
    num_classes: int  # number of outputs
    class_order: ClassOrder
    kind: LabelKind


class Datasets(NamedTuple):
    """Data sets of the training and of the validation images; each is None if this process does not use it."""

    train: KeyedDataset | None
    val: KeyedDataset | None


def find_training_images(config: ClassifyConfig, given: GivenImages) -> Images:
    """List the training images and, unless the options disable evaluation, the validation images.

    Raises:
        ConfigError: there is no --data_path, an option does not fit the images, or a package is not installed.
        DataError: images or labels are missing or cannot be used, or a validation image has a class that the training
            images lack.
    """
    _require_data_path(config)
    cls = KINDS[config.label_task]
    train, val = _find_tables(config, cls, given) if cls.dense else _find_classes(config, given)
    if config.train_fraction < 1:
        train = _take_fraction(config, train, dense=cls.dense)
    order = ClassOrder(train.classes, numbered=train.numbered, numbers_are_named=train.numbers_are_named)
    is_sweep = isinstance(config, LinprobeConfig) and config.lr_sweep  # which compares accuracies
    kind = BalancedClasses() if config.balance_classes and not is_sweep else cls()
    return Images(train, val, config.nb_classes or len(train.classes), order, kind.fit(train.labels))


def _find_classes(config: ClassifyConfig, given: GivenImages) -> tuple[LabeledImages, LabeledImages | None]:
    train: LabeledImages
    val: LabeledImages | None = None
    if config.data_set == "CIFAR":
        train = read_cifar(config.data_path, "train")
        if not config.disable_eval_during_finetuning:
            val = read_cifar(config.data_path, "val")
    else:
        train = find_images(config.data_path, "train") if given.train is None else given.train
        require_classes(train, "training")
        if not config.disable_eval_during_finetuning:
            val = find_validation(train, config.data_path, config.eval_data_path, given=given.val)
    log_class_warnings(train)
    if config.nb_classes is not None and config.nb_classes < len(train.classes):
        starts_at_1 = "".join(f"; {sentence}" for sentence in label_warnings(train))
        raise ConfigError(
            f"--nb_classes {config.nb_classes} is fewer than the {len(train.classes)} classes of {train.source}"
            f"{starts_at_1}"
        )
    return train, val


def _find_tables(
    config: ClassifyConfig, cls: type[LabelKind], given: GivenImages
) -> tuple[LabeledImages, LabeledImages | None]:
    """Return (training images, validation images) of the CSV files of labels; without evaluation the latter is None."""
    if given.train is not None or given.val is not None:
        raise DataError(f"--task {cls.task} reads CSV files; a sequence in memory has classes only")
    file = label_table(config.data_path, "train", flag="--data_path")
    train = read_labels(file, binary=cls.binary, columns=config.label_columns)
    for sentence in label_notes(train):
        logger.warning("%s", sentence)
    if config.disable_eval_during_finetuning:
        return train, None
    return train, _validation_table(config, cls, train.classes, train.source)


def _validation_table(
    config: ClassifyConfig, kind: LabelKind | type[LabelKind], names: tuple[str, ...], source: str
) -> ImageList:
    """Return the validation images of a CSV file, with the same labels, `names`, as `source` and in the same order."""
    flag = "--eval_data_path" if config.eval_data_path else "--data_path"
    if not config.eval_data_path and Path(config.data_path).is_file() and not config.eval:
        raise DataError(f"--data_path {config.data_path} has no validation images; set --eval_data_path to their file")
    file = label_table(config.eval_data_path or config.data_path, "val", flag=flag)
    found = read_labels(file, binary=kind.binary, columns=config.label_columns, known=names)
    return match_labels(found, names, source)


def _take_fraction(config: ClassifyConfig, train: LabeledImages, *, dense: bool) -> LabeledImages:
    share, seed = config.train_fraction, config.seed
    rows = fraction_of_all(len(train), share, seed) if dense else fraction(train, share, seed)
    logger.info(
        "--train_fraction %g: %d of %d training images, chosen by --seed %d", share, len(rows), len(train), seed
    )
    return _rows_of(train, rows)


def _rows_of(images: LabeledImages, rows: Rows) -> LabeledImages:
    if isinstance(images, CifarImages):
        return dataclasses.replace(images, pixels=images.pixels[rows], labels=images.labels[rows])
    return subset(images, rows)


def find_evaluation_parts(
    config: ClassifyConfig, head: Head, kind: LabelKind, given: GivenImages
) -> Iterator[EvaluationPart]:
    """Yield the parts of the images on which a trained network is evaluated, with labels in the order of its outputs.

    Args:
        config: options of the run.
        head: outputs of the network.
        kind: kind of the network's labels.
        given: images in place of those of --data_path and --eval_data_path.

    Raises:
        ConfigError: there is no --data_path, an option does not fit the network, or a package is not installed.
        DataError: images or labels are missing or cannot be used, or the network does not know a class.
    """
    _require_data_path(config)
    if config.nb_classes not in (None, head.outputs):
        raise ConfigError(
            f"--nb_classes {config.nb_classes}: {head.source} is a classifier of {counted(head.outputs, 'class')}; "
            "leave the flag out"
        )
    if config.task not in (None, kind.task):
        raise ConfigError(
            f"--task {config.task}: {head.source} was trained with --task {kind.task}; leave the flag out"
        )
    if kind.dense:
        if config.eval_set:
            raise ConfigError(
                f"--eval_set {config.eval_set} has classes, but {head.source} predicts {kind.task} labels"
            )
        yield EvaluationPart("", _validation_table(config, kind, head.names, head.source))
    elif config.data_set == "CIFAR":
        yield EvaluationPart("", number_by_outputs(read_cifar(config.data_path, "val"), head))
    else:
        flag = "--eval_data_path" if config.eval_data_path else "--data_path"
        own = given.train if given.val is None and not config.eval_data_path else given.val
        path = config.eval_data_path or config.data_path
        source = Source(path, flag, head, config.real_labels, own)
        if config.eval_set:
            yield from find_parts(config.eval_set, source)
        else:
            yield EvaluationPart("", number_by_outputs(source.images(), head))


def _require_data_path(config: ClassifyConfig) -> None:
    if not config.data_path:
        raise ConfigError("--data_path is required: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")


def build_datasets(config: ClassifyConfig, images: Images, world: World) -> Datasets:
    """Return the data sets of a run's images; those of pipeline stages after the first have a size but no images."""
    if world.previous is not None:  # pipeline stages after the first read no images
        return Datasets(
            *(None if split is None else SizeOnlyDataset(len(split)) for split in (images.train, images.val))
        )
    train = None if images.train is None else build_dataset(config, images.train, train_transform(config))
    val = None if images.val is None else evaluation_dataset(config, images.val)
    return Datasets(train, val)


def check_datasets(datasets: Datasets, config: ClassifyConfig, world: World) -> None:
    """With --check_data, check the image files and let the data sets skip bad ones; all processes must call.

    Only the first pipeline stage has data sets of files; the others wait for it. CIFAR's images are not checked.
    """
    files = {
        name: dataset
        for name, dataset in datasets._asdict().items()
        if isinstance(dataset, (ImageDataset, EvaluationDataset))
    }
    found = check_data(config, world, {name: dataset.images for name, dataset in files.items()})
    for name, bad in found.items():
        for index, reason in bad:
            files[name].mark_bad(index, reason)


def evaluation_dataset(config: ClassifyConfig, images: LabeledImages) -> KeyedDataset:
    """Return a data set of `images` with the transform of validation and without replacements for bad images."""
    transform = validation_transform(config)
    if isinstance(images, CifarImages):
        return CifarDataset(images, transform, seed=config.seed)
    return EvaluationDataset(images, transform, **_reading(config))


def build_dataset(config: ClassifyConfig, images: LabeledImages, transform: Transform) -> KeyedDataset:
    """Return a data set that applies `transform` to `images` and, with --bad_image skip, replaces bad ones."""
    if isinstance(images, CifarImages):
        return CifarDataset(images, transform, seed=config.seed)
    return ImageDataset(images, transform, **_reading(config))


def _reading(config: ClassifyConfig) -> dict[str, Any]:
    """Return the arguments of a data set of files, apart from the files and their transform."""
    return {
        "seed": config.seed,
        "backend": config.image_backend,
        "bad_image": config.bad_image,
        "pixel_format": pixel_settings.settled_format(config),
    }


def cached_datasets(model: ImageClassifier, config: ClassifyConfig, images: Images, world: World) -> Datasets:
    """Encode the evaluation crop of every readable image and return data sets of the features.

    All processes must call. Outside the main process, the data sets are None.

    Raises:
        CheckpointError: a feature is NaN or infinite.
        DataError: an image cannot be read and --bad_image is error, or none can be read.
        ConfigError: a package that reads the images is not installed.
    """
    model.eval()
    normalize = build_normalize(config)
    parts: list[FeatureDataset | None] = []
    for name, split in (("train", images.train), ("val", images.val)):
        if split is None:
            parts.append(None)
            continue
        arrays, kept, _ = encode_dataset(
            lambda batch: {"features": model.pool(normalize(batch))},
            evaluation_dataset(config, split),
            world,
            batch_size=config.batch_size,
            num_workers=count_workers(config.num_workers),
            title=f"encoding {name}",
        )
        require_finite_features(arrays, "the encoder")
        parts.append(FeatureDataset(arrays["features"], np.asarray(split.labels)[kept]) if arrays else None)
    if world.is_main:
        logger.info("--cache_features: encoded the evaluation crop of every image; the recipe itself uses random crops")
    return Datasets(*parts)


def _loader_workers(config: ClassifyConfig, dataset: KeyedDataset) -> int:
    """Return the number of loader processes: 0 for cached features and for pipeline stages that read no images."""
    return 0 if isinstance(dataset, (FeatureDataset, SizeOnlyDataset)) else count_workers(config.num_workers)


def training_batches(config: ClassifyConfig, images: Images, dataset: KeyedDataset, world: World) -> BatchLoader:
    """Return a loader of the shuffled training batches, with --balance_classes from every class equally often.

    Args:
        config: options of the run.
        images: images of the run.
        dataset: its training samples: images, or the cached features of those that can be read.
        world: processes of the run.
    """
    labels = None
    if config.balance_classes and images.train is not None:
        labels = dataset.labels if isinstance(dataset, FeatureDataset) else images.train.labels
    return training_loader(dataset, config, world, num_workers=_loader_workers(config, dataset), labels=labels)


def validation_loader(dataset: KeyedDataset, config: ClassifyConfig, world: World) -> BatchLoader:
    """Return a loader that reads every image once: in each process or, with --dist_eval, in one of the processes."""
    rank, size = (world.rank, world.size) if config.dist_eval else (0, 1)
    sampler = EpochBatchSampler(
        len(dataset), config.batch_size, rank, size, config.seed, shuffle=False, drop_last=False
    )
    workers = _loader_workers(config, dataset)
    return build_loader(dataset, sampler, num_workers=workers, worker_timeout=config.worker_timeout)
