"""`plsc-mae pretrain`: train a method's network on unlabeled images."""

from __future__ import annotations

import logging
import textwrap

import paddle
from paddle import nn

from plsc_mae.config import PretrainConfig, TrainingConfig
from plsc_mae.config.schema import to_line
from plsc_mae.data.imagefolder import (
    ImageDataset,
    ImageList,
    balanced_subset,
    find_images,
    find_validation,
    require_classes,
)
from plsc_mae.data.loader import BatchLoader, build_loader, collate
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.seeding import SampleKey
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch
from plsc_mae.methods.contract import Method
from plsc_mae.models.recompute import keep_no_activations
from plsc_mae.optim.sharding import check_stage
from plsc_mae.parallel.tensor import share_blocks
from plsc_mae.parallel.world import World
from plsc_mae.runtime import available_cores, local_processes
from plsc_mae.train.observers.base import Observer, PicturePanel
from plsc_mae.train.observers.features import FeatureWatch
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.train.trainer import Trainer

logger = logging.getLogger(__name__)

MAX_WORKERS = 10  # facebookresearch/mae's --num_workers
PANEL_IMAGES = 8


def run(config: PretrainConfig) -> None:
    """Pre-train as the config says.

    Raises:
        UserError: anything about config, data, folders or checkpoints that the user can mend.
    """
    method = load_method(config.method)
    dataset = build_dataset(config, method)
    watched = find_watched(config, dataset.images) if config.knn_freq else None
    if config.online_probe:
        require_classes(dataset.images, "--online_probe")
    world = training_world(config)
    if world.is_main:
        logger.info("options: %s", textwrap.fill(to_line(config), 120, subsequent_indent="  "))
    paddle.seed(config.seed)
    task = method.build_task(config)
    share_network(task.model, config, world)
    loader = training_loader(dataset, config, world)
    observers: list[Observer] = []
    if config.vis_freq:
        panel = _panel(build_dataset(config, method, view=True)) if world.rank == 0 else None
        observers.append(PicturePanel(task, panel, config.vis_freq, world))
    if watched is not None:
        workers = count_workers(config.num_workers)
        observers.append(FeatureWatch(task, method.normalize(config), *watched, config, world, num_workers=workers))
    probe = None
    if config.online_probe:
        classes = len(dataset.images.classes)
        probe = OnlineProbe(task.model.encoder.embed_dim, classes, config.online_probe_lr, world)
    Trainer(task, loader, config, world, observers=observers, probe=probe).fit()


def training_world(config: TrainingConfig) -> World:
    """The processes of a training run, in the layout that its options ask for.

    Raises:
        ConfigError: a layout that the processes or the device do not allow.
    """
    stages = getattr(config, "pipeline_parallel", 1)
    world = World(config.device, tensor_parallel=config.tensor_parallel, pipeline_parallel=stages)
    shares_network = world.tensor.size * world.pipeline.size > 1
    check_stage(config.sharding_stage, is_gpu=world.is_gpu, shares_network=shares_network)
    if config.recompute and not world.is_gpu and paddle.__version__.startswith("2."):
        raise ConfigError(f"--recompute on the CPU needs Paddle 3; this is {paddle.__version__}")
    return world


def share_network(model: nn.Layer, config: TrainingConfig, world: World) -> None:
    """Keep this process's part of a network, with the activations that are asked for."""
    share_blocks(model, world.tensor)
    if config.recompute:
        keep_no_activations(model)


def build_dataset(config: PretrainConfig, method: Method[PretrainConfig], *, view: bool = False) -> ImageDataset:
    """The images of the config, transformed for training or, with `view`, for looking at.

    Raises:
        ConfigError: no data path.
        DataError: nothing usable at it.
    """
    if not config.data_path:
        raise ConfigError("--data_path is required: an image folder or a list file")
    return ImageDataset(
        find_images(config.data_path, "train"),
        method.view_transform(config) if view else method.train_transform(config),
        seed=config.seed,
        backend=config.image_backend,
        bad_image=config.bad_image,
    )


def find_watched(config: PretrainConfig, train: ImageList) -> tuple[ImageList, ImageList]:
    """Choose the training and validation images that --knn_freq compares.

    Raises:
        ConfigError: fewer images are to be compared than there are classes or neighbors.
        DataError: images are missing or without labels, or the two sets have other classes.
    """
    val = find_validation(train, config.data_path, config.eval_data_path)
    if config.knn_max_images < len(train.classes):
        raise ConfigError(
            f"--knn_max_images {config.knn_max_images} is fewer than the {len(train.classes)} classes of {train.root}"
        )
    bank, queries = (balanced_subset(images, config.knn_max_images) for images in (train, val))
    if len(queries) < 2:
        raise DataError(f"{val.root} has 1 image; --knn_freq needs two or more to compare")
    if config.knn_k > len(bank):
        raise ConfigError(f"--knn_k {config.knn_k} asks for more neighbors than the {len(bank)} images of the bank")
    return bank, queries


def training_loader(dataset: ImageDataset, config: PretrainConfig, world: World) -> BatchLoader:
    """Batches of this process in shuffled order, decoded by as many workers as the config or the cores say."""
    sampler = EpochBatchSampler(len(dataset), config.batch_size, world.rank, world.size, config.seed)
    workers = count_workers(config.num_workers)
    return build_loader(dataset, sampler, num_workers=workers, worker_timeout=config.worker_timeout)


def count_workers(wanted: int | None) -> int:
    """Processes that decode for this one: those wanted, or this process's share of the cores."""
    return min(MAX_WORKERS, max(1, available_cores() // local_processes())) if wanted is None else wanted


def _panel(view: ImageDataset) -> Batch:
    """A few images spread over the data set, always the same ones, without random crops."""
    count = min(PANEL_IMAGES, len(view))
    samples = [view[SampleKey(0, i * len(view) // count)] for i in range(count)]
    return {name: paddle.to_tensor(value) for name, value in collate(samples).arrays.items()}
