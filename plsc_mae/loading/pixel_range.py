"""The range of pixel values with which a run or a tool reads images of more than 8 bits per band."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from plsc_mae import weights
from plsc_mae.config import TrainingConfig
from plsc_mae.data.decode import read_content
from plsc_mae.data.depth import PixelRange, sampled_range
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.sequence import SequenceImages
from plsc_mae.errors import CheckpointError, ConfigError

OPTION = "pixel_range"
AUTO = "auto"
OWN_SUFFIX = ".pd"  # files of other code bases store no range

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
logger = logging.getLogger(__name__)


def settle(config: ConfigT, images: ImageList | None, checkpoint: str | Path | None) -> ConfigT:
    """Return the config of a training run with its final `pixel_range`: two numbers as text, or None.

    Args:
        config: options of the run.
        images: images from which `auto` determines the range; if None, `auto` gives None.
        checkpoint: checkpoint that the run resumes, evaluates or starts from, whose range is the default.

    Raises:
        ConfigError: --pixel_range is malformed.
    """
    found = choose(config.pixel_range, [checkpoint] if checkpoint else [], images)
    values = None if found is None else tuple(f"{value:g}" for value in found)
    return dataclasses.replace(config, pixel_range=values)


def choose(given: Sequence[str] | None, origins: Sequence[str | Path], images: ImageList | None) -> PixelRange | None:
    """Return the range that an option asks for, by default that of a checkpoint, else None; warn if the two differ.

    Args:
        given: the value of --pixel_range; None if it is not set.
        origins: checkpoints; the first one that stores a range gives the default.
        images: images from which `auto` determines the range; if None, `auto` gives None.

    Raises:
        ConfigError: --pixel_range is malformed.
    """
    stored = [(origin, values) for origin in origins if (values := _stored(origin)) is not None]
    if given is None:
        return parse(stored[0][1]) if stored else None
    found = _automatic(images) if tuple(given) == (AUTO,) else parse(given)
    for origin, values in stored:
        trained = parse(values)
        if trained != found:
            logger.warning(
                "%s was trained with pixel values from %s, not %s; leave --pixel_range out to use them",
                origin,
                describe(trained),
                describe(found),
            )
    return found


def parse(values: Sequence[str] | None) -> PixelRange | None:
    """Convert two numbers as text to a range; None stays None.

    Raises:
        ConfigError: there are not two numbers in ascending order.
    """
    if values is None:
        return None
    try:
        low, high = map(float, values)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"--pixel_range {' '.join(values)}: expected two numbers, the smaller one first, or {AUTO}")
    return PixelRange(low, high)


def describe(pixel_range: PixelRange | None) -> str:
    """Return a range as text."""
    return "the default range" if pixel_range is None else f"{pixel_range.low:g} to {pixel_range.high:g}"


def _automatic(images: ImageList | None) -> PixelRange | None:
    if images is None:
        return None
    if isinstance(images, SequenceImages):
        raise ConfigError(f"--{OPTION} {AUTO} samples files, and {images.root} is a sequence; give two numbers")
    found = sampled_range([images.path(i) for i in range(len(images))], read_content)
    if found is None:
        logger.info("--pixel_range auto: no sampled image has more than 8 bits per band")
    else:
        logger.info("--pixel_range auto: pixel values from %s", describe(found))
    return found


def _stored(origin: str | Path) -> list[str] | None:
    """Return the two numbers of a checkpoint's `pixel_range` as text; None if it stores no range or is unreadable."""
    if Path(origin).suffix != OWN_SUFFIX:
        return None
    try:
        options = weights.read(origin).meta.get("args")
    except CheckpointError:  # reported when the weights are loaded
        return None
    values = options.get(OPTION) if isinstance(options, dict) else None
    return [str(value) for value in values] if isinstance(values, (list, tuple)) and values else None
