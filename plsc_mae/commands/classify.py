"""`plsc-mae finetune` and `plsc-mae linprobe`: train a classifier on labeled images, or evaluate one."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle

from plsc_mae import weights
from plsc_mae.analysis.features import FeatureDataset, encode_dataset, require_finite_features
from plsc_mae.config import ClassifyConfig, FinetuneConfig, LinprobeConfig
from plsc_mae.data.cifar import CifarDataset, CifarImages, read_cifar
from plsc_mae.data.classes import ClassOrder, label_warnings, log_class_warnings
from plsc_mae.data.evaluation import EvaluationDataset
from plsc_mae.data.imagefolder import (
    GivenImages,
    ImageDataset,
    ImageList,
    find_images,
    find_validation,
    require_classes,
)
from plsc_mae.data.loader import BatchLoader, KeyedDataset, build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transforms import Transform
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading import pixel_range
from plsc_mae.loading.class_names import Head, number_by_outputs, read_head
from plsc_mae.loading.classifier_weights import (
    load_classifier_weights,
    parts_of_start,
    start_from_pretraining,
    warn_of_eps,
    warn_of_statistics,
)
from plsc_mae.loading.contents import base_of
from plsc_mae.methods.classify import (
    ClassifyTask,
    build_classifier,
    build_normalize,
    left_out_augmentations,
    train_transform,
    validation_transform,
)
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.parallel.world import World
from plsc_mae.pipeline.data import SizeOnlyDataset
from plsc_mae.pipeline.schedule import Line
from plsc_mae.pipeline.stages import check_pipeline_options, keep_stage, stages_by_cost
from plsc_mae.pipeline.task import PipelinedTask
from plsc_mae.runtime import count_workers
from plsc_mae.train.checkpoint.folder import Start, find_start
from plsc_mae.train.checkpoint.run_record import RunRecord
from plsc_mae.train.data_check import check_data
from plsc_mae.train.history import recording_warnings
from plsc_mae.train.observers.base import Evaluation
from plsc_mae.train.precision import choose_precision
from plsc_mae.train.setup import build_trainer, log_options, share_network, training_loader, training_world
from plsc_mae.train.signals import preparing_run
from plsc_mae.weights import Checkpoint, LoadReport

logger = logging.getLogger(__name__)

BEST_METRIC = "test_acc1"
FEW_IMAGES = 8  # of a batch norm
LARGEST_START = 0.1  # share of the initial weights in their moving average at the end of a run
LabeledImages = ImageList | CifarImages


class Images(NamedTuple):
    """Labeled images of a run, the number of the classifier's outputs, and the order of the classes in them.

    If `train` is None, the classifier is only evaluated; if `val` is None, it is only trained.
    """

    train: LabeledImages | None
    val: LabeledImages | None
    num_classes: int
    class_order: ClassOrder


class Trained(NamedTuple):
    """Checkpoint of a classifier to evaluate, and its outputs."""

    checkpoint: Checkpoint
    head: Head


class Datasets(NamedTuple):
    """Data sets of the training and validation images; None if the run does not use them."""

    train: KeyedDataset | None
    val: KeyedDataset | None


def run(config: ClassifyConfig) -> None:
    """Train the classifier of `config` or, with --eval, evaluate it; raise as `train` does."""
    train(config, GivenImages())


def train(config: ClassifyConfig, given: GivenImages) -> Mapping[str, float]:
    """Train the classifier of `config` or, with --eval, evaluate it.

    Args:
        config: options of the run.
        given: images in place of those of --data_path and --eval_data_path.

    Returns:
        The metrics of the last evaluation by name; empty without one.

    Raises:
        UserError: options, data, folders or checkpoints cannot be used; the message names the remedy.
    """
    if config.eval:
        return _train(config, Start(None, RunRecord()), given)
    with preparing_run(), recording_warnings():
        return _train(config, find_start(config), given)


def _train(config: ClassifyConfig, start: Start, given: GivenImages) -> Mapping[str, float]:
    trained = _read_trained(config) if config.eval else None
    if trained is None:
        images = _find_training_images(config, given)
    else:
        images = _find_evaluation_images(config, trained.head, given)
    known = images.val if config.eval else images.train
    origin = start.checkpoint or config.resume or config.finetune
    config = pixel_range.settle(config, known if isinstance(known, ImageList) else None, origin)
    world = training_world(config)
    log_options(config, world)
    if left_out := left_out_augmentations(config):
        logger.info("%s", left_out)
    paddle.seed(config.seed)
    parts = parts_of_start(config, trained.checkpoint if trained else start.checkpoint)
    model = build_classifier(config, images.num_classes, **parts)
    _load(model, config, trained or start.checkpoint, images.class_order)
    del trained  # all tensors of the file
    share_network(model, config, world)
    if world.pipeline.size > 1:
        _keep_stage(model, config, world)
    datasets = _datasets(config, images, world)
    if not config.eval:
        _check(datasets, config, world)
    if isinstance(config, LinprobeConfig) and config.cache_features:
        if world.tensor.size > 1:
            raise ConfigError("--cache_features and --tensor_parallel cannot be combined; leave one of them out")
        datasets = _cached(model, config, images, world)
        if not world.is_main:
            return {}
        world = world.alone()
    task = _task(model, config, images, world)
    evaluations = _evaluations(task, config, datasets.val, world)
    if config.eval:
        return _print_accuracies(evaluations[0], world)
    assert datasets.train is not None
    loader = training_loader(datasets.train, config, world, num_workers=_workers(config, datasets.train))
    if world.is_main:
        _warn_of_small_data(config, len(loader))
    trainer = build_trainer(task, loader, config, world, observers=evaluations, keep_best=BEST_METRIC)
    trainer.fit(start)
    if isinstance(task, SweepTask) and world.is_main:
        _print_sweep(task, trainer.metrics)
    return trainer.metrics


def _warn_of_small_data(config: ClassifyConfig, iterations: int) -> None:
    """Warn of parts of the recipe that do not work with few images per batch or few updates."""
    if config.probe != "none" and config.batch_size < FEW_IMAGES:
        logger.warning(
            "the probe's batch norm takes mean and variance over %d images, which is little; give --batch_size %d or "
            "more",
            *(config.batch_size, FEW_IMAGES),
        )
    if isinstance(config, FinetuneConfig):
        _warn_of_short_finetuning(config, config.epochs * -(-iterations // config.accum_iter))


def _warn_of_short_finetuning(config: FinetuneConfig, updates: int) -> None:
    if config.batch_size == 1 and (config.mixup or config.cutmix or config.cutmix_minmax):
        logger.warning("mixup and cutmix have no effect with --batch_size 1: an image has no partner")
    start = config.model_ema_decay**updates
    if config.model_ema and start > LARGEST_START:
        logger.warning(
            "--model_ema_decay %g is too high for %d updates: the average keeps %.0f %% of the initial weights, so "
            "ema_test_acc1 says little; --model_ema_decay %.3g keeps 1 %%",
            *(config.model_ema_decay, updates, 100 * start, 0.01 ** (1 / updates)),
        )


# --------------------------------------------------------------------------------------------------- images


def _find_training_images(config: ClassifyConfig, given: GivenImages) -> Images:
    """List the training images, and the validation images unless the run does without.

    Raises:
        ConfigError: there is no --data_path, or --nb_classes is smaller than the number of classes.
        DataError: images or labels are missing, or a validation image has a class that the training images lack.
    """
    _require_data_path(config)
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
    num_classes = config.nb_classes or len(train.classes)
    if num_classes < len(train.classes):
        starts_at_1 = "".join(f"; {sentence}" for sentence in label_warnings(train))
        raise ConfigError(
            f"--nb_classes {num_classes} is fewer than the {len(train.classes)} classes of {train.source}{starts_at_1}"
        )
    return Images(train, val, num_classes, ClassOrder(train.classes, numbered=train.numbered))


def _find_evaluation_images(config: ClassifyConfig, head: Head, given: GivenImages) -> Images:
    """List the images to evaluate a classifier on, with its outputs as labels.

    Raises:
        ConfigError: there is no --data_path, or --nb_classes is not the number of outputs.
        DataError: images or labels are missing, or the classifier does not know a class.
    """
    _require_data_path(config)
    if config.nb_classes not in (None, head.outputs):
        raise ConfigError(
            f"--nb_classes {config.nb_classes}: {head.source} is a classifier of {head.outputs} classes; leave the "
            "flag out"
        )
    val: LabeledImages
    if config.data_set == "CIFAR":
        val = number_by_outputs(read_cifar(config.data_path, "val"), head)
    else:
        flag = "--eval_data_path" if config.eval_data_path else "--data_path"
        own = given.train if given.val is None and not config.eval_data_path else given.val
        found = find_images(config.eval_data_path or config.data_path, "val", flag=flag) if own is None else own
        require_classes(found, "evaluation")
        val = number_by_outputs(found, head)
    return Images(None, val, head.outputs, ClassOrder(val.classes))


def _require_data_path(config: ClassifyConfig) -> None:
    if not config.data_path:
        raise ConfigError("--data_path is required: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")


def _datasets(config: ClassifyConfig, images: Images, world: World) -> Datasets:
    if world.previous is not None:  # pipeline stages after the first read no images
        return Datasets(
            *(None if split is None else SizeOnlyDataset(len(split)) for split in (images.train, images.val))
        )
    train = None if images.train is None else build_dataset(config, images.train, train_transform(config))
    val = None if images.val is None else evaluation_dataset(config, images.val)
    return Datasets(train, val)


def _check(datasets: Datasets, config: ClassifyConfig, world: World) -> None:
    """Check the image files of a run, and let its data sets skip the bad ones; all processes must call.

    Only the first pipeline stage has data sets of files; the others wait for it.

    Raises:
        DataError: files are bad and --bad_image is error.
        CheckpointError: the result cannot be written.
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
    """Return a data set of training images that applies `transform` to each of them."""
    if isinstance(images, CifarImages):
        return CifarDataset(images, transform, seed=config.seed)
    return ImageDataset(images, transform, **_reading(config))


def _reading(config: ClassifyConfig) -> dict[str, Any]:
    """Return the arguments of a data set of files, apart from the files and their transform."""
    return {
        "seed": config.seed,
        "backend": config.image_backend,
        "bad_image": config.bad_image,
        "pixel_format": pixel_range.settled_format(config),
    }


def _cached(model: ImageClassifier, config: ClassifyConfig, images: Images, world: World) -> Datasets:
    """Encode the evaluation crop of every image once; all processes must call, the main one receives the features."""
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


def _workers(config: ClassifyConfig, dataset: KeyedDataset) -> int:
    """Return the number of loader processes: 0 for data sets that read no files."""
    return 0 if isinstance(dataset, (FeatureDataset, SizeOnlyDataset)) else count_workers(config.num_workers)


# ------------------------------------------------------------------------------------------------- network


def _read_trained(config: ClassifyConfig) -> Trained:
    """Read the checkpoint of the classifier to evaluate.

    Raises:
        CheckpointError: the file cannot be read, or holds no classifier.
        DataError: the file of --classes cannot be read, or has another number of names than the classifier has outputs.
    """
    stored = weights.read_network(config.resume or config.finetune, config.model_key, config.model_prefix)
    return Trained(stored, read_head(base_of(stored), config.classes))


def _load(model: ImageClassifier, config: ClassifyConfig, source: Trained | Path | None, classes: ClassOrder) -> None:
    """Load and log the weights of the classifier to evaluate, or those that the run starts from.

    Args:
        model: the classifier.
        config: options of the run.
        source: the classifier to evaluate, or the checkpoint from which the trainer will restore all weights; None
            without one.
        classes: classes of the run.
    """
    if isinstance(source, Trained):
        warn_of_eps(model, source.checkpoint)
        warn_of_statistics(source.checkpoint, config)
        logger.info("%s: %s", source.head.source, load_classifier_weights(model, source.checkpoint))
    elif config.finetune:
        _log_start(config.finetune, start_from_pretraining(model, config, classes))
    elif source is not None:
        if isinstance(config, LinprobeConfig) and config.cache_features:  # encodes before the trainer restores weights
            report = weights.load(model.encoder, source, prefix="encoder.")
            logger.info("%s: loaded %d tensors of the encoder, to encode every image", source, len(report.matched))
    else:
        logger.warning("without --finetune the encoder starts from random weights")


def _task(model: ImageClassifier, config: ClassifyConfig, images: Images, world: World) -> ClassifyTask | PipelinedTask:
    parts = build_normalize(config), config, images.num_classes, images.class_order
    if isinstance(config, LinprobeConfig) and config.lr_sweep:
        return SweepTask(model, *parts)  # type: ignore[arg-type]
    task = ClassifyTask(model, *parts)
    if world.pipeline.size == 1:
        return task
    return PipelinedTask(task, world, config.micro_batches, frozen=config.probe != "none")


def _keep_stage(model: ImageClassifier, config: ClassifyConfig, world: World) -> None:
    """Keep only this process's pipeline stage of the network, and log the blocks of every stage."""
    check_pipeline_options(config)
    stages = stages_by_cost(model, world)
    keep_stage(model, Line.of(world), stages[world.stage])
    logger.info("blocks by stage: %s", ", ".join(f"{blocks[0]}-{blocks[-1]}" for blocks in stages))


def _log_start(path: str, report: LoadReport) -> None:
    fresh = sorted({re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] for name in report.missing})
    resized = f", resized: {', '.join(report.resized)}" if report.resized else ""
    logger.info(
        "%s (%s): %d tensors loaded, new layers: %s, %d tensors of the file not used%s",
        path,
        report.dialect,
        len(report.matched),
        ", ".join(fresh) or "none",
        len(report.unexpected),
        resized,
    )


# ---------------------------------------------------------------------------------------------- evaluation


def _evaluations(
    task: ClassifyTask | PipelinedTask, config: ClassifyConfig, dataset: KeyedDataset | None, world: World
) -> list[Evaluation]:
    """Return the evaluations of the weights and, with --model_ema, of their moving average; none without `dataset`."""
    if dataset is None:
        return []
    loader = validation_loader(dataset, config, world)
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
    evaluate = functools.partial(Evaluation, task, loader, world, shared=config.dist_eval, precision=precision)
    average = task.task.average if isinstance(task, PipelinedTask) else task.average
    if average is None:
        return [evaluate()]
    return [evaluate(), evaluate(prefix="ema_test_", weights=average.applied)]


def validation_loader(dataset: KeyedDataset, config: ClassifyConfig, world: World) -> BatchLoader:
    """Return a loader of every image once: in each process or, with --dist_eval, divided among the processes."""
    rank, size = (world.rank, world.size) if config.dist_eval else (0, 1)
    sampler = EpochBatchSampler(
        len(dataset), config.batch_size, rank, size, config.seed, shuffle=False, drop_last=False
    )
    workers = _workers(config, dataset)
    return build_loader(dataset, sampler, num_workers=workers, worker_timeout=config.worker_timeout)


def _print_accuracies(evaluation: Evaluation, world: World) -> Mapping[str, float]:
    metrics = evaluation().metrics
    if world.is_main:
        top1, top5, loss = (metrics[f"test_{name}"] for name in ("acc1", "acc5", "loss"))
        if not math.isfinite(loss):
            raise CheckpointError(
                f"the loss of the evaluation is {loss}: the weights are too large for float32; evaluate an earlier "
                "checkpoint of the run"
            )
        print(f"* Acc@1 {top1:.3f} Acc@5 {top5:.3f} loss {loss:.3f}, {evaluation.scored} images")
    return metrics


def _print_sweep(task: SweepTask, metrics: dict[str, float]) -> None:
    if not metrics:
        return
    print("     rate  test_acc1  test_loss")
    for rate, name in zip(task.rates, task.names, strict=True):
        print(f"{rate:9.4g}  {metrics[f'test_acc1_{name}']:9.2f}  {metrics[f'test_loss_{name}']:9.4f}")
