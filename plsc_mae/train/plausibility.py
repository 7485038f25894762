"""Checks of a recipe against the data: values that suit large data sets, or square images, can fail on others."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from plsc_mae.config import ClassifyConfig, LinprobeConfig, TrainingConfig
from plsc_mae.config.training import UpdateScheduleOptions
from plsc_mae.data.listing import ImageList
from plsc_mae.data.sequence import SequenceImages
from plsc_mae.data.shapes import (
    LARGE,
    describe_shrinking,
    fitting_crop_ratio,
    fitting_input_size,
    sampled_sizes,
    typical_shape,
)
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.models.registry import find_variant
from plsc_mae.optim import Schedule, scaled_lr
from plsc_mae.optim.lars import TRUST_COEFFICIENT
from plsc_mae.train.scaling import remedy_at_chance, scales_with_batch
from plsc_mae.wording import counted, in_millions

logger = logging.getLogger(__name__)

LONG_WARMUP = 0.5  # share of the run
MANY_PARAMETERS = 200_000_000  # between ViT-B and ViT-L
# Largest possible change of the weights by LARS, relative to their norm. Measured with heads on features of 8 classes,
# 62 % separable: 13 to 16 % accuracy at 0.1, 34 to 45 % at 0.9, 62 % at 3.
LEAST_LARS_CHANGE = 1.0
SAMPLES = 1000  # points of a schedule at which its mean is taken


def check_accumulation(config: TrainingConfig, iterations: int, parts: int) -> None:
    """Check that an epoch has enough iterations for one whole accumulation group.

    The last group of an epoch ends with the epoch. If no group is whole, every update has fewer images than the number
    for which the learning rate is scaled.

    Args:
        config: options of the run.
        iterations: iterations per epoch.
        parts: number of data-parallel processes, each with a batch of --batch_size.

    Raises:
        ConfigError: no group is whole and the learning rate is scaled; an absolute rate only causes a warning.
    """
    if config.accum_iter <= iterations:
        return
    planned, real = (config.batch_size * parts * count for count in (config.accum_iter, iterations))
    text = (
        f"--accum_iter {config.accum_iter} exceeds the {counted(iterations, 'iteration')} of an epoch, so every update "
        f"has {counted(real, 'image')} instead of {planned}"
    )
    if not scales_with_batch(config):
        logger.warning("%s; give --accum_iter %d or less", text, iterations)
        return
    _, base = config.given_rate
    raise ConfigError(
        f"{text}; the learning rate would be {scaled_lr(base, planned):.4g}, but {base:g} x {real} / 256 is "
        f"{scaled_lr(base, real):.4g}: give --accum_iter {iterations} or less"
    )


def warn_of_default_network(config: TrainingConfig, n_parameters: int) -> None:
    """Log a warning if the network is the default of --model and large; call this only in runs without a GPU."""
    if config.model == type(config).model and n_parameters >= MANY_PARAMETERS:
        logger.warning(
            "%s, the default of --model, has %s parameters and trains slowly without a GPU; choose a smaller --model, "
            "or a recipe with one from `plsc-mae configs`",
            *(config.model, in_millions(n_parameters)),
        )


def warn_of_shape(config: TrainingConfig, images: ImageList) -> None:
    """Log a warning if the images are typically far from square and no crop of training can hold a whole one.

    Otherwise log what the input leaves of a detail of images that are typically much larger. Only the headers of a few
    images are read. There is no message with --tile, which crops from squares, nor for images in memory, which could be
    slow to read.
    """
    if config.tile or isinstance(images, SequenceImages):
        return
    sizes = sampled_sizes(images, pixel_settings.settled_format(config))
    if not sizes:
        return
    shape = typical_shape(sizes)
    low, high = config.crop_ratio
    if not shape.is_far_from_square or low <= shape.ratio <= high:
        _log_shrinking(min(shape.width, shape.height), min(config.image_size))
        return
    center = isinstance(config, ClassifyConfig) and not _suits(config.image_size, shape.ratio)
    logger.warning(
        "the images are typically %s, but crops of training have a width / height of %.3g to %.3g: none holds a whole "
        "image%s; to train on whole images, give %s",
        *(shape, low, high, ", and evaluation sees the center only" if center else ""),
        " ".join(_options_of_shape(config, shape.ratio)),
    )


def _log_shrinking(shorter: float, side: int) -> None:
    if shorter >= LARGE * side:
        logger.info(
            "images of typically %.0f pixels are shrunk %s; a larger --input_size than %d keeps more",
            *(shorter, describe_shrinking(shorter, side), side),
        )


def _suits(size: tuple[int, int], ratio: float) -> bool:
    """Return whether an input of `size` = (h, w) has about the width / height `ratio`."""
    low, high = fitting_crop_ratio(ratio)
    return low <= size[1] / size[0] <= high


def _options_of_shape(config: TrainingConfig, ratio: float) -> Iterator[str]:
    """Yield the options with which crops, input and evaluation suit images of a width / height of `ratio`."""
    if not _suits(config.image_size, ratio):
        patch_size = config.patch_size or int(find_variant(config.model).arguments["patch_size"])
        side = math.lcm(patch_size, config.mask_cell)
        height, width = fitting_input_size(ratio, math.prod(config.image_size) // side**2, side)
        yield f"--input_size {height} {width}"
    low, high = fitting_crop_ratio(ratio)
    yield f"--crop_ratio {low:g} {high:g}"
    if isinstance(config, ClassifyConfig) and config.crop_pct != 1:
        yield "--crop_pct 1"


def warn_of_schedule(config: TrainingConfig, schedule: Schedule, *, lr: float, updates_per_epoch: int) -> None:
    """Log a warning for each sign that a network will hardly learn under a schedule.

    The signs are a warm-up that is long or not over at --max_train_step, a --min_lr or --warmup_lr above the peak, and
    LARS with tiny updates.
    """
    for sentence in (
        *_long_warmup(config, updates_per_epoch),
        *_rates_above_peak(config, lr),
        *_idle_lars(config, schedule, updates_per_epoch),
    ):
        logger.warning(sentence)


def _long_warmup(config: TrainingConfig, updates_per_epoch: int) -> Iterator[str]:
    steps = config.warmup_steps if isinstance(config, UpdateScheduleOptions) else -1
    warmup = steps if steps > 0 else config.warmup_epochs * updates_per_epoch
    flag = "--warmup_steps" if steps > 0 else "--warmup_epochs"
    total = config.epochs * updates_per_epoch
    if warmup >= LONG_WARMUP * total:
        yield f"the warm-up takes {warmup:g} of {counted(total, 'update')}; lower {flag} or train for more epochs"
    elif config.max_train_step is not None and config.max_train_step < warmup:
        yield (
            f"--max_train_step {config.max_train_step} ends within the warm-up, {warmup:g} of "
            f"{counted(total, 'update')}, so the learning rate does not reach its peak; lower {flag} if "
            "this is the whole run"
        )


def _rates_above_peak(config: TrainingConfig, lr: float) -> Iterator[str]:
    for name, rate in (("min_lr", config.min_lr), ("warmup_lr", config.first_rate)):
        if rate > lr > 0:
            reason = " for this batch" if scales_with_batch(config) else ""
            yield (
                f"--{name} {rate:g} exceeds the peak learning rate {lr:.3g}{reason}, so the schedule runs upside down; "
                f"lower --{name} or raise the peak"
            )


def _idle_lars(config: TrainingConfig, schedule: Schedule, updates_per_epoch: int) -> Iterator[str]:
    """Yield a warning if all updates of LARS together move the weights too little.

    LARS scales each gradient to TRUST_COEFFICIENT times the norm of the weights, and momentum m multiplies the sum of
    the updates by 1 / (1 - m). So relative to their norm, the weights move by at most the sum of the learning rates
    times TRUST_COEFFICIENT / (1 - m). A move below LEAST_LARS_CHANGE is too little.
    """
    if not config.opt.startswith("lars") or (isinstance(config, LinprobeConfig) and config.lr_sweep):
        return
    total = config.epochs * updates_per_epoch
    count = min(total, SAMPLES)
    points = [i * total // count for i in range(count)]
    mean = sum(schedule(update / updates_per_epoch, update).lr for update in points) / count
    change = mean * total * TRUST_COEFFICIENT / (1 - config.momentum)
    if change < LEAST_LARS_CHANGE and config.momentum < 1:
        advice = remedy_at_chance(config) if isinstance(config, ClassifyConfig) else "a higher one, or more epochs"
        yield (
            f"the learning rate is too low for {counted(total, 'update')}: LARS can change the weights by {change:.2g} "
            f"of their norm in all, so they stay near their random start; try {advice}"
        )
