"""Pixel settings of a run or tool: channels, bands, pixel range, mean and standard deviation.

Each setting comes from the first of these that has it: option, file of --stats, checkpoint, default. Bands, mean and
standard deviation of a checkpoint apply only if it has the channels of the run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from plsc_mae import weights
from plsc_mae.config import TrainingConfig
from plsc_mae.config.data_sets import StatsConfig
from plsc_mae.config.pixels import PixelOptions, channel_contradictions
from plsc_mae.config.schema import refuse_mistakes
from plsc_mae.data.decode import deep_values
from plsc_mae.data.depth import PixelRange, sampled_range
from plsc_mae.data.display import Display
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.pixels import RGB_CHANNELS, PixelFormat
from plsc_mae.data.sequence import SequenceImages
from plsc_mae.errors import ConfigError, DataError, UserError, flag
from plsc_mae.loading.channels import stored_channels
from plsc_mae.wording import counted

OPTION = "pixel_range"
AUTO = "auto"
OWN_SUFFIX = ".pd"  # files of other code bases store no range

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
Numbers = tuple[float, ...]
PixelConfig = TrainingConfig | PixelOptions | StatsConfig
logger = logging.getLogger(__name__)


class PixelSettings(NamedTuple):
    """Pixel settings of a command."""

    pixel_format: PixelFormat  # channels, bands, range and tile size
    mean: Numbers | None  # mean of each channel on the scale 0 to 1; None for the method's default
    std: Numbers | None  # standard deviation of each channel on the scale 0 to 1; None for the method's default


class Source(NamedTuple):
    """Pixel settings stored in a checkpoint or in a file of --stats."""

    path: str  # the file
    channels: int  # number of channels
    bands: tuple[int, ...] = ()  # bands of the files; () for all
    pixel_range: tuple[str, ...] | None = None  # two numbers as text; None without a range
    mean: Numbers | None = None  # mean of each channel; None for the method's default
    std: Numbers | None = None  # standard deviation of each channel; None for the method's default


def settle(config: ConfigT, images: ImageList | None, checkpoint: str | Path | None) -> ConfigT:
    """Return the config of a training run with its pixel options resolved.

    On RGB images, an option stays None if neither the command line, the file of --stats nor the checkpoint sets it.
    `stats` becomes "", because its values are in the other options.

    Args:
        config: options of the run.
        images: images from which the range is sampled, for --pixel_range auto or if it is unknown; None to sample none.
        checkpoint: checkpoint that the run resumes, evaluates or starts from, whose values are the default.

    Raises:
        ConfigError: options are malformed, do not fit the images, or contradict each other or the file of --stats.
        DataError: the file of --stats cannot be read or used.
    """
    found = choose(config, [checkpoint] if checkpoint else [], images)
    form = found.pixel_format
    if found.mean is None and not form.is_rgb:
        logger.warning(
            "no mean and std for images of %s: using the average of the method's RGB values; `plsc-mae stats` "
            "measures those of your images for --stats",
            counted(form.channels, "channel"),
        )
    return dataclasses.replace(
        config,
        in_chans=config.in_chans if form.channels == config.channels else form.channels,
        bands=form.bands or None,
        pixel_range=None if form.range is None else tuple(map(_as_text, form.range)),
        mean=found.mean,
        std=found.std,
        stats="",
    )


def _as_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def display_of(pixel_format: PixelFormat, bands: tuple[int, ...] | None) -> Display:
    """Return the display of the channels `bands`.

    Args:
        pixel_format: format of the pixels.
        bands: channels, counted from 1; None for the first ones.

    Raises:
        ConfigError: `bands` has neither one nor three channels, or one that the images lack.
    """
    if bands and (len(bands) not in (1, RGB_CHANNELS) or max(bands) > pixel_format.channels):
        raise ConfigError(
            f"--picture_bands {' '.join(map(str, bands))}: expected one or three channels from 1 to "
            f"{pixel_format.channels}"
        )
    return Display.of(pixel_format, bands)


def settled_format(config: TrainingConfig) -> PixelFormat:
    """Return the pixel format of a config that `settle` returned; in other configs `auto` counts as no range.

    Raises:
        ConfigError: the range is malformed, which `settle` rules out.
    """
    found = None if config.pixel_range == (AUTO,) else parse(config.pixel_range)
    return PixelFormat(config.channels, tuple(config.bands or ()), found, config.tile)


def choose(
    config: PixelConfig,
    origins: Sequence[str | Path],
    images: ImageList | None,
    channels: int = RGB_CHANNELS,
) -> PixelSettings:
    """Return the pixel settings for the images of a command.

    Args:
        config: options of a command.
        origins: checkpoints, whose values are the defaults; earlier checkpoints take precedence.
        images: images from which the range is sampled, for --pixel_range auto or if it is unknown; None to sample none.
        channels: number of channels if neither options nor files give one.

    Raises:
        ConfigError: options are malformed, do not fit the images, or contradict each other or the file of --stats.
        DataError: the file of --stats cannot be read or used.
    """
    refuse_mistakes(channel_contradictions(config.in_chans, config.bands, config.mean, config.std))
    measured = read_stats(config.stats) if config.stats else None
    stored = [source for origin in origins if (source := _stored(origin)) is not None]
    sources = [measured, *stored] if measured else stored
    count = config.in_chans or len(config.bands or ()) or (sources[0].channels if sources else channels)
    fitting = [source for source in sources if source.channels == count]
    bands = config.bands or (fitting[0].bands if fitting else ())
    pixel_format = PixelFormat(count, tuple(bands), tile=config.tile)
    if measured:
        _require_same(config, measured, pixel_format)
    found = _choose_range(config.pixel_range, fitting or sources, images, pixel_format)
    mean, std = (config.mean, config.std) if config.mean is not None else _statistics(fitting)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, count):
            raise ConfigError(
                f"--{name} has {counted(len(values), 'value')}, but the images have {counted(count, 'channel')}; "
                "expected one value per channel, or one for all"
            )
    return PixelSettings(
        pixel_format._replace(range=found),
        None if mean is None else mean * (count if len(mean) == 1 else 1),
        None if std is None else std * (count if len(std) == 1 else 1),
    )


def choose_for(
    own: Normalize, config: PixelConfig, checkpoint: str | Path, images: ImageList | None, channels: int
) -> tuple[PixelFormat, Normalize]:
    """Return (pixel format, normalization) for the images that a command passes to a trained network.

    Args:
        own: normalization of the network's training, used unless `choose` finds mean and standard deviation.
        config: options of the command.
        checkpoint: file of the network.
        images: see `choose`.
        channels: channels of the network.
    """
    found = choose(config, [checkpoint], images, channels)
    if found.mean is None or found.std is None:
        return found.pixel_format, own
    return found.pixel_format, Normalize(found.mean, found.std)


def _statistics(sources: Sequence[Source]) -> tuple[Numbers | None, Numbers | None]:
    """Return (mean, standard deviation) of the first source that has them; (None, None) if none does."""
    return next(((source.mean, source.std) for source in sources if source.mean is not None), (None, None))


def _require_same(config: PixelConfig, measured: Source, pixel_format: PixelFormat) -> None:
    """Raise ConfigError if the channels, bands or range of a file of --stats differ from the run's."""
    if measured.channels != pixel_format.channels or measured.bands != pixel_format.bands:
        own, theirs = (
            f"{counted(c, 'channel')}{f', bands {b}' if b else ''}"
            for c, b in (
                (pixel_format.channels, " ".join(map(str, pixel_format.bands))),
                (measured.channels, " ".join(map(str, measured.bands))),
            )
        )
        raise ConfigError(
            f"{flag('stats')} {measured.path} was measured on {theirs}, but this run has {own}; measure again"
        )
    given = config.pixel_range
    if given is not None and tuple(given) != (AUTO,) and parse(given) != parse(measured.pixel_range):
        raise ConfigError(
            f"{flag('stats')} {measured.path} was measured with pixel values from "
            f"{describe(parse(measured.pixel_range))}; leave --pixel_range out, or measure again"
        )


def _choose_range(
    given: Sequence[str] | None, sources: Sequence[Source], images: ImageList | None, pixel_format: PixelFormat
) -> PixelRange | None:
    """Return the range of the option, else that of the first source that has one; None for the default range.

    An option that differs from a source is used with a warning. If nothing gives a range and no source has the channels
    of `pixel_format`, the range of images other than RGB is sampled from their files.
    """
    if given is None:
        ranges = [source.pixel_range for source in sources if source.pixel_range is not None]
        if ranges or any(source.channels == pixel_format.channels for source in sources):
            return parse(ranges[0]) if ranges else None
        return None if pixel_format.is_rgb or isinstance(images, SequenceImages) else _automatic(images, pixel_format)
    found = _automatic(images, pixel_format) if tuple(given) == (AUTO,) else parse(given)
    for source in sources:
        trained = parse(source.pixel_range)
        if trained is not None and trained != found:
            logger.warning(
                "%s was trained with pixel values from %s, not %s; leave --pixel_range out to use them",
                source.path,
                describe(trained),
                describe(found),
            )
    return found


def parse(values: Sequence[str] | None) -> PixelRange | None:
    """Convert two numbers as text to a range; None stays None.

    Raises:
        ConfigError: there are not two finite numbers in ascending order.
    """
    if values is None:
        return None
    try:
        low, high = map(float, values)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise ConfigError(
            f"{flag('pixel_range')} {' '.join(values)}: expected two numbers, the smaller one first, or {AUTO}"
        )
    return PixelRange(low, high)


def describe(pixel_range: PixelRange | None) -> str:
    """Return a range as text for messages, such as "0 to 4095"; None is the default range."""
    return "the default range" if pixel_range is None else f"{pixel_range.low:g} to {pixel_range.high:g}"


def _automatic(images: ImageList | None, pixel_format: PixelFormat) -> PixelRange | None:
    if images is None:
        return None
    if isinstance(images, SequenceImages):
        raise ConfigError(f"--{OPTION} {AUTO} samples files, and {images.root} is a sequence; give two numbers")
    paths = [images.path(i) for i in range(len(images))]
    found = sampled_range(paths, lambda path: deep_values(path, pixel_format))
    if found is None:
        logger.info("--pixel_range auto: no sampled image has more than 8 bits per band")
    else:
        logger.info("--pixel_range auto: pixel values from %s", describe(found))
    return found


def stored_format(origin: str | Path, channels: int) -> PixelFormat:
    """Return the pixel format that a checkpoint was trained on, with `channels` channels.

    It has neither bands nor a range if the checkpoint stores none or cannot be read.
    """
    found = _stored(origin)
    return PixelFormat(channels) if found is None else PixelFormat(channels, found.bands, parse(found.pixel_range))


# ------------------------------------------------------------------------------------------------ files with values


def read_stats(path: str) -> Source:
    """Read the pixel settings in a file of `plsc-mae stats`; a standard deviation of 0 becomes 1, with a warning.

    Raises:
        DataError: the file cannot be read, was not written by `plsc-mae stats`, or has a mean without a std or a std
            without a mean.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        source = _source(path, content, int(content["in_chans"]))
    except OSError as error:
        raise DataError(
            f"cannot read {flag('stats')} {path}: {error.strerror}; check the path, or write the file by "
            f"`plsc-mae stats DIR --save_path {shlex.quote(path)}`"
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise DataError(f"{flag('stats')} {path} was not written by `plsc-mae stats`; measure again") from None
    if (source.mean is None) != (source.std is None):
        present, absent = ("std", "mean") if source.mean is None else ("mean", "std")
        raise DataError(f"{flag('stats')} {path} has {present} but no {absent}; expected both, so measure again")
    constant = [channel for channel, value in enumerate(source.std or (), start=1) if not value > 0]
    if not constant:
        return source
    logger.warning(
        "%s: the channels %s have one value in all images, so they contain no information; their std is taken as 1",
        path,
        " ".join(map(str, constant)),
    )
    return source._replace(std=tuple(value if value > 0 else 1.0 for value in source.std or ()))


def _stored(origin: str | Path) -> Source | None:
    """Return the pixel settings of a checkpoint, for other code bases only the channels; None if they are unknown."""
    try:
        stored = weights.read(origin)
        channels = stored_channels(stored)
    except UserError:  # reported when the weights are loaded
        return None
    options = stored.meta.get("args")
    own = Path(origin).suffix == OWN_SUFFIX and isinstance(options, dict)
    if channels is None and not own:
        return None
    values: Mapping[str, Any] = options if own and options else {}
    return _source(str(origin), values, channels or values.get("in_chans") or RGB_CHANNELS)


def _source(path: str, options: Mapping[str, Any], channels: int) -> Source:
    def values(name: str) -> tuple[Any, ...]:
        value = options.get(name)
        return tuple(value) if isinstance(value, (list, tuple)) else ()

    return Source(
        path,
        channels,
        tuple(int(band) for band in values("bands")),
        tuple(str(value) for value in values(OPTION)) or None,
        tuple(float(value) for value in values("mean")) or None,
        tuple(float(value) for value in values("std")) or None,
    )
