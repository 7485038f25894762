"""`plsc-mae stats`: measures mean and standard deviation of every channel of a data set, for --stats of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plsc_mae import console
from plsc_mae.analysis.channel_statistics import MOMENTS, Moments, combine, measure_channels
from plsc_mae.commands.results import require_free, summarize
from plsc_mae.config.data_sets import StatsConfig
from plsc_mae.data.evaluation import UNREADABLE, EvaluationDataset
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.loader import build_loader
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.unreadable import none_can_be_read
from plsc_mae.errors import DataError
from plsc_mae.files import refuse_foreign, result_replacement
from plsc_mae.loading import pixel_settings
from plsc_mae.names import as_json
from plsc_mae.runtime import count_workers

BATCH = 8
SIGNS = ('"in_chans": ',)  # by which the file is recognized


def run(config: StatsConfig) -> None:
    """Read all pixels of the readable images of --split, print the statistics and write them to --save_path.

    Statistics without the unreadable images are valid, so the exit code is 0; a warning has their names and number.

    Raises:
        DataError: images cannot be listed or read, or the file cannot be written or has other channels.
        ConfigError: options are malformed or contradict each other, or a package is not installed.
    """
    path = Path(config.save_path)
    require_free(path, signs=SIGNS)
    images = find_images(config.data_path, config.split)
    form = pixel_settings.choose(config, [], images).pixel_format
    _refuse_other_channels(path, form.channels)
    if form.tile:
        form = form._replace(tile=sys.maxsize)  # whole images, read part by part
    dataset = EvaluationDataset(images, measure_channels, bad_image=config.bad_image, pixel_format=form)
    unreadable: list[int] = []
    parts = list(_moments(dataset, config, unreadable))
    if not parts:
        raise none_can_be_read(dataset.reason(0), len(images))
    dataset.log_unreadable(unreadable)
    total = combine(parts)
    print("channel      mean       std  smallest   largest")
    for channel, values in enumerate(zip(total.mean, total.std, total.low, total.high, strict=True), start=1):
        print(f"{channel:7d}" + "".join(f"{value:10.5f}" for value in values))
    _write(path, form, total, len(parts), len(unreadable))
    print(path)
    summarize(len(unreadable), len(images))


def _refuse_other_channels(path: Path, channels: int) -> None:
    """Raise DataError if the file has the statistics of another number of channels, which runs may need."""
    try:
        refuse_foreign(path, (f'"in_chans": {channels},',))
    except FileExistsError:
        raise DataError(
            f"{path} has the statistics of another number of channels than {channels}; remove it, or choose another "
            "--save_path"
        ) from None


def _moments(dataset: EvaluationDataset, config: StatsConfig, unreadable: list[int]) -> Iterator[Moments]:
    """Yield the moments of the readable images in order; append the indices of the others to `unreadable`."""
    sampler = EpochBatchSampler(len(dataset), BATCH, 0, 1, seed=0, shuffle=False, drop_last=False)
    loader = build_loader(dataset, sampler, num_workers=count_workers(config.num_workers))
    for batch in tqdm(loader, dataset.images.root, disable=not console.shows_bars()):
        for moments, mark, index in zip(batch[MOMENTS], batch[UNREADABLE], np.asarray(batch[INDEX]), strict=True):
            if mark:
                unreadable.append(int(index))
            else:
                yield Moments(*moments)


def _write(path: Path, form: PixelFormat, total: Moments, images: int, unreadable: int) -> None:
    content = {
        "in_chans": form.channels,
        "bands": list(form.bands),
        "pixel_range": None if form.range is None else list(form.range),
        "mean": total.mean.tolist(),
        "std": total.std.tolist(),
        "min": total.low.tolist(),
        "max": total.high.tolist(),
        "images": images,
        "unreadable_images": unreadable,
        "pixels": int(total.pixels[0]),
    }
    try:
        with result_replacement(path, SIGNS) as temporary:
            temporary.write_text(as_json(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
