"""`plsc-mae pretrain`: trains the network of a method on unlabeled images."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import paddle

from plsc_mae import console
from plsc_mae.commands.next_steps import after_pretraining
from plsc_mae.config import PretrainConfig
from plsc_mae.data.classes import ClassOrder, log_class_warnings
from plsc_mae.data.imagefolder import (
    GivenImages,
    ImageDataset,
    ImageList,
    balanced_subset,
    find_images,
    find_validation,
    require_classes,
)
from plsc_mae.data.loader import collate
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.tiles import without_repeats
from plsc_mae.data.transfer import device_batch
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.initial_weights import load_initial_weights
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch, Task
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.parallel.world import World
from plsc_mae.plan.run_memory import planned_memory
from plsc_mae.plan.sketch import check_network
from plsc_mae.report.run_folder import read_run
from plsc_mae.report.verdict import judge
from plsc_mae.runtime import count_workers
from plsc_mae.train.announcements import announce_command
from plsc_mae.train.checkpoint.folder import Start, find_start
from plsc_mae.train.data_check import check_data
from plsc_mae.train.history import recording_warnings
from plsc_mae.train.observers.base import Observer
from plsc_mae.train.observers.features import HEALTH_IMAGES, FeatureWatch, ImageEncoder, RepresentationWatch
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.train.observers.pictures import PicturePanel
from plsc_mae.train.plausibility import warn_of_shape
from plsc_mae.train.setup import (
    build_trainer,
    pretraining_dataset,
    settle_pixels,
    share_network,
    training_loader,
    training_world,
)
from plsc_mae.train.signals import preparing_run
from plsc_mae.wording import counted

PANEL_IMAGES = 8
FIXED_IMAGES = 64  # images whose loss --feature_freq measures

logger = logging.getLogger(__name__)


def run(config: PretrainConfig) -> None:
    """Pre-train the network of `config` on the images of --data_path; raise as `train` does."""
    train(config, GivenImages())


def train(config: PretrainConfig, given: GivenImages, task: Task | None = None) -> None:
    """Pre-train the network of `config`.

    Args:
        config: options of the run.
        given: images in place of those of --data_path and --eval_data_path.
        task: task to train in place of the method's; its batches are those of the method.

    Raises:
        UserError: options, data, folders or checkpoints cannot be used; the message names the remedy.
    """
    with preparing_run(), recording_warnings():
        _train(config, find_start(config), given, task)


def _train(config: PretrainConfig, start: Start, given: GivenImages, task: Task | None) -> None:
    method = load_method(config.method)
    config = settle_pixels(config, start.checkpoint or config.initial_weights or None, given.train)
    if task is None:
        check_network(config)
    dataset = pretraining_dataset(config, method, images=given.train)
    listed = without_repeats(dataset.images)
    knn_images = find_knn_images(config, listed, given.val) if config.knn_freq else None
    validation = knn_images[1] if knn_images else given.val
    watched = find_watched_images(config, listed, validation) if config.feature_freq else None
    if config.online_probe:
        require_classes(dataset.images, "--online_probe")
    if config.online_probe or config.knn_freq:
        log_class_warnings(dataset.images)
    world = training_world(config)
    announce_command(config, world)
    _check_images(config, world, dataset, knn_images[1] if knn_images else None)
    paddle.seed(config.seed)
    if task is None:
        task = method.build_task(config)
        if world.is_main:
            method.log_remarks(config, task)
    else:
        _require_encoder(task, config)
        logger.info(
            "training the caller's %s in place of the objective of %s; its network is of type %s and not %s",
            *(type(task).__name__, config.method, type(task.model).__name__, config.model),
        )
    if config.initial_weights and start.checkpoint is None:
        load_initial_weights(task, config)
    memory = planned_memory(task, config, world)
    task.display = pixel_settings.display_of(pixel_settings.settled_format(config), config.picture_bands)
    share_network(task.model, config, world)
    loader = training_loader(dataset, config, world)
    observers: list[Observer] = []
    if config.picture_epochs:
        view = pretraining_dataset(config, method, images=dataset.images, view=True)
        panel = _fixed_batch(view, PANEL_IMAGES) if world.rank == 0 else None
        observers.append(PicturePanel(task, method.normalize(config), panel, config, world))
    workers = count_workers(config.num_workers)
    encode = ImageEncoder(task, method.normalize(config), config, world, num_workers=workers)
    if knn_images is not None:
        observers.append(FeatureWatch(encode, *knn_images))
    if watched is not None:
        view = pretraining_dataset(config, method, images=watched)
        batch = _fixed_batch(view, FIXED_IMAGES) if task.reference_loss and world.rank == 0 else None
        observers.append(RepresentationWatch(encode, watched, view.transform, batch))
    probe = None
    if config.online_probe:
        names = dataset.images.classes
        order = ClassOrder(names, numbered=dataset.images.numbered, numbers_are_named=dataset.images.numbers_are_named)
        probe = OnlineProbe(task.model.encoder.embed_dim, len(names), config.online_probe_lr, world, order)
    trainer = build_trainer(task, loader, config, world, observers=observers, probe=probe, planned_memory=memory)
    trainer.fit(start)
    if world.is_main and not trainer.log.is_new:
        _print_verdict(Path(config.output_dir))
    if world.processes == world.size and trainer.saver.saved_path is not None and world.is_main:
        after_pretraining(config, task.model, trainer.saver.saved_path, listed)


def _print_verdict(folder: Path) -> None:
    """Print the answer of `report` to "is it learning?", unless the run in `folder` has no losses to compare."""
    with contextlib.suppress(DataError):  # the logs could not be written, which a warning has said
        verdict = judge(read_run(folder, with_pictures=False))
        if verdict.answer != "unknown":
            console.report(" ".join(["is it learning?", *verdict.lines]))


def _check_images(config: PretrainConfig, world: World, dataset: ImageDataset, val: ImageList | None) -> None:
    """Check the files of a run, let the data set replace bad ones, and warn of their shape; all processes must call.

    For the errors see `check_data`.
    """
    bad = check_data(config, world, {"train": dataset.images, **({} if val is None else {"val": val})})
    for index, reason in bad.get("train", ()):
        dataset.mark_bad(index, reason)
    if world.is_main:
        warn_of_shape(config, dataset.images)


def _require_encoder(task: Task, config: PretrainConfig) -> None:
    """Raise ConfigError if an option needs the encoder of a caller's task, and its network has none."""
    if isinstance(getattr(task.model, "encoder", None), VisionTransformer):
        return
    for name in ("online_probe", "knn_freq", "feature_freq", "initial_weights"):
        if getattr(config, name):
            kind = f"{type(task).__name__}.model of type {type(task.model).__name__}"
            raise ConfigError(f"--{name} needs a VisionTransformer in model.encoder, which {kind} lacks; leave it out")


def find_watched_images(config: PretrainConfig, train: ImageList, val: ImageList | None = None) -> ImageList:
    """Return up to HEALTH_IMAGES images for --feature_freq: those of `val` or --eval_data_path, else training images.

    Raises:
        DataError: the images of --eval_data_path cannot be listed, or there is only one image.
        ConfigError: a package that reads the images is not installed.
    """
    if val is None and config.eval_data_path:
        val = find_images(config.eval_data_path, "val", flag="--eval_data_path")
    images = balanced_subset(train if val is None else val, HEALTH_IMAGES)
    if len(images) < 2:
        raise DataError(f"{images.root} has 1 image; --feature_freq needs two or more to compare")
    return images


def find_knn_images(
    config: PretrainConfig, train: ImageList, val: ImageList | None = None
) -> tuple[ImageList, ImageList]:
    """Return the (training, validation) images that --knn_freq compares, up to --knn_max_images each.

    Raises:
        ConfigError: --knn_max_images is smaller than the number of classes, --knn_k exceeds the number of training
            images, or a package that reads the images is not installed.
        DataError: images or labels are missing, a validation image has a class that the training images lack, or there
            is only one validation image.
    """
    val = find_validation(train, config.data_path, config.eval_data_path, given=val)
    if config.knn_max_images < len(train.classes):
        raise ConfigError(
            f"--knn_max_images {config.knn_max_images} is fewer than the {len(train.classes)} classes of {train.root}"
        )
    bank, queries = (balanced_subset(images, config.knn_max_images) for images in (train, val))
    if len(queries) < 2:
        raise DataError(f"{val.root} has 1 image; --knn_freq needs two or more to compare")
    if config.knn_k is not None and config.knn_k > len(bank):
        raise ConfigError(
            f"--knn_k {config.knn_k} asks for more neighbors than the {counted(len(bank), 'image')} of the bank"
        )
    if (len(bank), len(queries)) != (len(train), len(val)):
        logger.info(
            "k-NN evaluation: %d of %d training and %d of %d validation images, the same number of every class "
            "(--knn_max_images)",
            *(len(bank), len(train), len(queries), len(val)),
        )
    return bank, queries


def _fixed_batch(dataset: ImageDataset, number: int) -> Batch:
    """Return a fixed batch of up to `number` images, evenly spaced in the data set."""
    count = min(number, len(dataset))
    samples = [dataset[SampleKey(0, i * len(dataset) // count)] for i in range(count)]
    return device_batch(collate(samples).arrays)
