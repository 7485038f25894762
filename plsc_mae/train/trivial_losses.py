"""Losses of trivial predictors on training batches, computed once per run, as references for its loss."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from plsc_mae.analysis.trivial import DESCRIPTIONS
from plsc_mae.methods.base import Batch, Task
from plsc_mae.names import as_json
from plsc_mae.train.checkpoint.folder import TRIVIAL_LOSSES
from plsc_mae.train.log.append_file import replace_content
from plsc_mae.wording import counted

ENOUGH_IMAGES = 64

logger = logging.getLogger(__name__)


class TrivialLosses:
    """Measurement of the losses of trivial predictors, on the main process's first training batches after `start`.

    It reads no image again and draws no random numbers, so the training is unaffected.

    Args:
        task: task of the run; a Task without `reference_loss` has no such losses.
        output_dir: folder of the run.
    """

    def __init__(self, task: Task, output_dir: Path) -> None:
        self.task, self.path = task, output_dir / TRIVIAL_LOSSES
        self._run = ""
        self._pending = False
        self._batches: list[Batch] = []

    def start(self, run: str, origin: str = "") -> None:
        """Begin to collect batches, unless the task has no such losses or the folder has those of `run` or `origin`.

        Args:
            run: id of the run.
            origin: id of the run from whose checkpoint this one started; "" for none.
        """
        self._run = run
        self._pending = bool(self.task.reference_loss) and _run_of(self.path) not in {run, origin} - {""}

    def add(self, batch: Batch) -> None:
        """Collect the images of a prepared batch, up to ENOUGH_IMAGES in all; after the last of them, call `finish`."""
        if not self._pending:
            return
        images = len(batch["image"])
        taken = min(images, ENOUGH_IMAGES - self._count())
        self._batches.append({name: x[: taken * (len(x) // images)] for name, x in batch.items()})  # rows of the images
        if self._count() == ENOUGH_IMAGES:
            self.finish()

    def finish(self) -> None:
        """Log the losses on the collected batches, write them to the folder and discard the batches.

        Without collected batches, do nothing. If the file cannot be written, only warn.
        """
        if not self._batches:
            return
        started, task = time.perf_counter(), self.task
        losses = task.trivial_losses(self._batches)
        images = self._count()
        self._pending, self._batches = False, []
        parts = ", ".join(f"{DESCRIPTIONS[name]} {loss:.4g}" for name, loss in losses.items())
        logger.info(
            "%s of trivial predictors on the first %s: %s", task.reference_loss, counted(images, "image"), parts
        )
        record = {"run": self._run, "loss": task.reference_loss, "images": images, "losses": losses}
        record["seconds"] = round(time.perf_counter() - started, 3)
        try:
            replace_content(self.path, (as_json(record) + "\n").encode())
        except OSError as error:
            logger.warning("cannot write %s: %s", self.path, error.strerror)

    def _count(self) -> int:
        return sum(len(batch["image"]) for batch in self._batches)


def _run_of(path: Path) -> str:
    """Return the id of the run that wrote the losses; "" if the file is missing or damaged."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
