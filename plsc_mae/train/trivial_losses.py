"""Losses of trivial predictors on some training samples, computed once per run, as references for its loss."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from plsc_mae.analysis.trivial import DESCRIPTIONS
from plsc_mae.data.loader import KeyedDataset
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transfer import device_batch
from plsc_mae.data.workers import collate
from plsc_mae.errors import DataError
from plsc_mae.methods.base import Batch, Task
from plsc_mae.train.checkpoint.folder import TRIVIAL_LOSSES
from plsc_mae.train.log.append_file import replace_content

MAX_IMAGES = 64

logger = logging.getLogger(__name__)


def report_trivial_losses(
    task: Task, dataset: KeyedDataset, *, batch_size: int, output_dir: Path, run: str, origin: str = ""
) -> None:
    """Log the losses of trivial predictors and write them to the run's folder, unless the run has them.

    The samples are those of up to MAX_IMAGES images of the first epoch, evenly spaced in the data set, with the random
    crops and masks of training. Images that cannot be read are left out. A Task without such losses does nothing. The
    random numbers of the training do not change.

    Args:
        task: task of the run.
        dataset: training samples.
        batch_size: images per batch of a process.
        output_dir: folder of the run.
        run: id of the run.
        origin: id of the run whose logs this run continues; "" for none.
    """
    path = output_dir / TRIVIAL_LOSSES  # a resumed run has the file
    if not task.reference_loss or _run_of(path) in {run, origin} - {""}:
        return
    started = time.perf_counter()
    batches = list(_batches(dataset, batch_size))
    if not batches:
        logger.warning("no image could be read for the losses of trivial predictors; the run has no such losses")
        return
    losses = task.trivial_losses(batches)
    images = sum(len(batch["image"]) for batch in batches)
    parts = ", ".join(f"{DESCRIPTIONS[name]} {loss:.4g}" for name, loss in losses.items())
    logger.info("%s of trivial predictors on %d images: %s", task.reference_loss, images, parts)
    record = {"run": run, "loss": task.reference_loss, "images": images, "losses": losses}
    record["seconds"] = round(time.perf_counter() - started, 3)
    try:
        replace_content(path, (json.dumps(record) + "\n").encode())
    except OSError as error:
        logger.warning("cannot write %s: %s", path, error.strerror)


def _run_of(path: Path) -> str:
    """Return the id of the run that wrote the losses; "" without a file."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _batches(dataset: KeyedDataset, batch_size: int) -> Iterator[Batch]:
    """Yield batches of the same number of samples; images that are left over are not used."""
    count = min(MAX_IMAGES, len(dataset))
    samples = []
    for i in range(count):
        with contextlib.suppress(DataError):  # training reports the file when it reads it
            samples.append(dataset[SampleKey(0, i * len(dataset) // count)])
    size = min(batch_size, len(samples))
    for start in range(0, len(samples) - size + 1, size) if samples else ():
        yield device_batch(collate(samples[start : start + size]).arrays)
