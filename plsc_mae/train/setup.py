"""Wiring of a training run: processes, data, optimizer, precision, sharding, logs and checkpoints.

All commands that train, or measure a training step, use this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import paddle
from paddle import nn

from plsc_mae.config import PretrainConfig, TrainingConfig
from plsc_mae.data.imagefolder import ImageDataset, ImageList, find_images
from plsc_mae.data.listing import list_images
from plsc_mae.data.loader import BatchLoader, KeyedDataset, build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.tiles import repeat_by_tiles
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.methods.base import Task
from plsc_mae.methods.contract import Method
from plsc_mae.models.deterministic import choose_kernels
from plsc_mae.models.recompute import keep_no_activations
from plsc_mae.optim import build_optimizer
from plsc_mae.optim.sharding import Sharded, UpdateSharing, check_stage, share_gradients
from plsc_mae.parallel.tensor import count_parameters, share_blocks
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers
from plsc_mae.train.announcements import announce_plan
from plsc_mae.train.checkpoint.saver import Saver
from plsc_mae.train.checkpoint.state import Progress, RunState
from plsc_mae.train.compiled import CompiledTask
from plsc_mae.train.log.boards import RunOptions
from plsc_mae.train.log.run_logger import RunLogger
from plsc_mae.train.nonfinite.policy import NonFinitePolicy
from plsc_mae.train.observers.base import Observer
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.train.plausibility import check_accumulation, warn_of_default_network, warn_of_schedule
from plsc_mae.train.precision import choose_precision, lower_weights
from plsc_mae.train.scaling import images_per_update, peak_lr
from plsc_mae.train.step import Accumulation, Stepper, trainable_parameters
from plsc_mae.train.trainer import Trainer

# --------------------------------------------------------------------------------------------- processes and data


def training_world(config: TrainingConfig) -> World:
    """Choose the kernels and create the process groups of a training run, as its options request; all must call.

    Raises:
        ConfigError: the processes, the device or the Paddle version do not support the options, or process 0 cannot be
            reached.
    """
    choose_kernels(deterministic=config.deterministic)
    world = World(config.device, tensor_parallel=config.tensor_parallel, pipeline_parallel=config.stages)
    shares_network = world.tensor.size * world.pipeline.size > 1
    check_stage(config.sharding_stage, is_gpu=world.is_gpu, shares_network=shares_network)
    choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)  # refuse before data are read
    if config.recompute and not world.is_gpu and paddle.__version__.startswith("2."):
        raise ConfigError(
            f"--recompute on CPU needs Paddle 3, but this is {paddle.__version__}; update Paddle or omit --recompute"
        )
    return world


def settle_pixels(
    config: PretrainConfig, checkpoint: str | Path | None, images: ImageList | None = None
) -> PretrainConfig:
    """Return the config with its pixel options resolved, see `loading.pixel_settings.settle`.

    Args:
        config: options of the run.
        checkpoint: checkpoint that the run resumes or starts from, whose pixel settings are the default; None without
            one.
        images: the images from which an automatic range is determined; None lists those of --data_path if needed.

    Raises:
        ConfigError: the pixel options are invalid, or contradict the images or the file of --stats.
        DataError: the file of --stats cannot be read, or the range is automatic and --data_path has no usable images.
    """
    automatic = config.pixel_range == (pixel_settings.AUTO,) or (config.pixel_range is None and not config.is_rgb)
    if images is None and automatic and config.data_path:
        images = list_images(config.data_path, "train")
    return pixel_settings.settle(config, images, checkpoint)


def pretraining_dataset(
    config: PretrainConfig, method: Method[PretrainConfig], *, images: ImageList | None = None, view: bool = False
) -> ImageDataset:
    """Return the data set of training images with the training transform, or with that for pictures if `view` is true.

    `images` is the list of images, if the caller has it already; None lists the images of --data_path.

    Raises:
        ConfigError: --data_path is missing, or options of pixels or transform are invalid.
        DataError: there are no usable images.
    """
    if not config.data_path:
        raise ConfigError("--data_path is required: an image folder or a list file")
    pixel_format = pixel_settings.settled_format(config)
    if images is None:
        images = repeat_by_tiles(find_images(config.data_path, "train"), pixel_format)
    return ImageDataset(
        images,
        method.view_transform(config) if view else method.train_transform(config),
        seed=config.seed,
        backend=config.image_backend,
        bad_image=config.bad_image,
        pixel_format=pixel_format,
        labels_on_device=config.online_probe,
    )


def training_loader(
    dataset: KeyedDataset,
    config: TrainingConfig,
    world: World,
    *,
    num_workers: int | None = None,
    labels: npt.NDArray[np.int64] | None = None,
) -> BatchLoader:
    """Return a loader of the shuffled training batches of this process.

    Args:
        dataset: training samples.
        config: options of the run.
        world: processes of the run; each data-parallel process gets batches of --batch_size.
        num_workers: number of loader processes; None uses --num_workers.
        labels: class numbers of the samples, to draw every class equally often; None draws every sample once.

    Raises:
        DataError: the data set has fewer samples than one batch of all processes.
    """
    sampler = EpochBatchSampler(len(dataset), config.batch_size, world.rank, world.size, config.seed, labels=labels)
    workers = count_workers(config.num_workers) if num_workers is None else num_workers
    return build_loader(dataset, sampler, num_workers=workers, worker_timeout=config.worker_timeout)


# ------------------------------------------------------------------------------------------------ network, updates


def share_network(model: nn.Layer, config: TrainingConfig, world: World) -> None:
    """Reduce a network in place to this process's part (--tensor_parallel) and apply --recompute."""
    share_blocks(model, world.tensor)
    if config.recompute:
        keep_no_activations(model)


def build_stepper(task: Task, config: TrainingConfig, world: World) -> Stepper:
    """Build the Stepper of a task from the options of the run.

    Args:
        task: task whose network `share_network` has reduced to this process's part.
        config: options of the run.
        world: processes of the run; all of them must call.

    Raises:
        ConfigError: the GPU, the Paddle version or the number of processes does not support the options.
    """
    groups = task.param_groups(config.weight_decay)
    params = trainable_parameters(task.model)
    sharing = UpdateSharing(groups, world) if config.sharding_stage == 1 and world.size > 1 and groups else None
    updated = groups if sharing is None else sharing.mine
    optimizer = build_optimizer(
        config.opt, updated, betas=config.opt_betas, eps=config.opt_eps, momentum=config.momentum
    )
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
    lower_weights(task, optimizer, precision)
    if config.sharding_stage > 1 and world.size > 1:
        wrapped = share_gradients(task, optimizer, config.sharding_stage, world.data)
    else:
        layer = CompiledTask(task, precision) if config.compile else task
        wrapped = Sharded(world.wrap(layer), optimizer, None)
    return Stepper(
        task,
        wrapped.optimizer,
        updated,
        params=params,
        layer=wrapped.layer,
        clip_grad=config.clip_grad,
        precision=precision,
        world=world,
        publish=None if sharing is None else sharing.publish,
        sharded=config.sharding_stage > 1,
        gather_weights=wrapped.collect,
    )


# --------------------------------------------------------------------------------------------------------- trainer


def build_trainer(
    task: Task,
    loader: BatchLoader,
    config: TrainingConfig,
    world: World,
    *,
    observers: Sequence[Observer] = (),
    keep_best: str = "",
    probe: OnlineProbe | None = None,
    planned_memory: int | None = None,
    after_epoch: Callable[[Progress], None] | None = None,
) -> Trainer:
    """Build the Trainer of a run; the main process prints the overview of the run and warns of a doubtful schedule.

    Args:
        task: task whose network `share_network` has reduced to this process's part.
        loader: training batches of this process.
        config: options of the run.
        world: processes of the run; all of them must call.
        observers: evaluate the network or draw pictures, see `Observer`.
        keep_best: name of an observer's metric; the checkpoint with its largest value is kept as checkpoint-best.pd. ""
            keeps none.
        probe: linear classifier trained on the features of the training batches; None for none.
        planned_memory: estimated bytes of tensors at the peak of an update, for the overview; None without an estimate.
        after_epoch: see `Trainer`.

    Raises:
        ConfigError: the options do not fit each other, the data, the processes or the installed packages.
    """
    task.gives_features = probe is not None
    n_parameters = count_parameters(trainable_parameters(task.model).values(), world)
    stepper = build_stepper(task, config, world)
    accumulation = Accumulation(len(loader), config.accum_iter)
    check_accumulation(config, accumulation.iterations, world.size)
    lr = peak_lr(config, images_per_update(config, world))
    schedule = task.schedule(config, lr, accumulation.updates)
    state = RunState(stepper, accumulation, probe, world, config)
    policy = NonFinitePolicy(state, loader)
    folders, options = (config.output_dir, config.log_dir or config.output_dir), RunOptions.of(config)
    log = RunLogger(
        *folders, active=world.is_main, loggers=config.logger or (), described=options, left_out=task.left_out
    )
    saver = Saver(state, log, config, world, before=policy.before_save)
    if world.is_main:
        announce_plan(state, loader, n_parameters=n_parameters, planned_memory=planned_memory, keep_best=keep_best)
        if not world.is_gpu:
            warn_of_default_network(config, n_parameters)
        warn_of_schedule(config, schedule, lr=lr, updates_per_epoch=accumulation.updates)
    return Trainer(
        state,
        loader,
        schedule,
        policy,
        log,
        saver,
        n_parameters=n_parameters,
        observers=observers,
        keep_best=keep_best,
        after_epoch=after_epoch,
    )
