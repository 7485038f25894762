"""Saving of checkpoints; while the disk is full or read-only, the run continues and retries."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plsc_mae.config import TrainingConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.parallel import activity
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.state import BEST, LATEST, PREVIOUS, Progress, RunState
from plsc_mae.train.log.run_logger import RunLogger
from plsc_mae.train.signals import StopRequest

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # shortest time from an attempt to save until `retry` saves
RETRY_SHARE = 0.1  # largest fraction of a run's time that `retry` spends
FIRST_WAITS = (2.0, 4.0, 8.0, 16.0)  # seconds between attempts after the last update, then RETRY_SECONDS
PATIENCE = 3600.0  # seconds after the last update until the run gives up saving
_REMEDY = "free disk space or make the folder writable"


class Saver:
    """Writer of a run's checkpoints; the main process writes the files, with tensors from all processes.

    All processes must call every method except `path`.

    Args:
        state: state of the run, which the checkpoints store.
        log: logger of the run, flushed before each checkpoint so that no checkpoint is newer than the logs.
        config: options of the run.
        world: processes of the run.
        before: called with the path and position of every checkpoint before it is written.

    Attributes:
        missing: tags that the last call of `save` could not write.
        saved_position: `Progress.position_key` of the last successful save.
        saved_path: the first checkpoint that the last successful save wrote; None before any.
    """

    def __init__(
        self,
        state: RunState,
        log: RunLogger,
        config: TrainingConfig,
        world: World,
        *,
        before: Callable[[Path, Progress], None],
    ) -> None:
        self.state, self.log, self.config, self.world, self.before = state, log, config, world, before
        self.missing: tuple[int | str, ...] = ()
        self.saved_position: tuple[int, ...] = ()
        self.saved_path: Path | None = None
        self._next_try = 0.0

    def path(self, tag: int | str) -> Path:
        """Return the path of the checkpoint `tag`."""
        return checkpoint_file.checkpoint_path(self.config.output_dir, self.config.exp_name, tag)

    def save(self, progress: Progress, *tags: int | str) -> None:
        """Write the checkpoints `tags` of a position; those that cannot be written are listed in `missing`.

        With --no_save_ckpt, or without tags, this does nothing.
        """
        if self.config.save_ckpt and tags:
            self.missing = tuple(tag for tag in tags if not self._save(progress, tag))
            written = [tag for tag in tags if tag not in self.missing]
            if written:
                self.saved_position, self.saved_path = progress.position_key, self.path(written[0])

    def save_absent(self, progress: Progress, tags: Sequence[int | str]) -> None:
        """Write those of the checkpoints `tags` whose files at this position are missing, for example after a kill."""
        main = self.world.is_main
        there = [float(main and checkpoint_file.is_saved(self.path(tag), progress.step)) for tag in tags]
        found = self.world.largest(there) if tags else []
        self.save(progress, *(tag for tag, is_there in zip(tags, found, strict=True) if not is_there))

    def retry(self, progress: Progress) -> None:
        """Save the position as `latest` if a checkpoint other than `best` is missing and the next attempt is due."""
        if any(tag != BEST for tag in self.missing) and self._is_due():
            self.save(progress, LATEST)

    def _is_due(self) -> bool:
        return self._any(self.world.is_main and time.monotonic() > self._next_try)

    def finish(self, progress: Progress, stop: StopRequest) -> None:
        """Retry at the end of the run until all checkpoints and logs are written.

        Raises:
            CheckpointError: they cannot be written within an hour, or a stop is requested before they are written.
        """
        deadline = time.monotonic() + PATIENCE
        waits = itertools.chain(FIRST_WAITS, itertools.repeat(RETRY_SECONDS))
        while self.missing or self._any(self._log_is_pending()):
            if self._any(bool(stop.signal) or (self.world.is_main and time.monotonic() > deadline)):
                raise CheckpointError(
                    f"the run ends but {self._missing_names()} could not be written to {self.config.output_dir}; "
                    f"{_REMEDY} and resume from the last checkpoint with --auto_resume"
                )
            until = time.monotonic() + next(waits)
            while time.monotonic() < until and not stop.signal:
                activity.tick()
                time.sleep(0.1)
            self.world.barrier()
            if self.missing:
                self.save(progress, *self.missing)

    def _any(self, value: bool) -> bool:
        """Return whether `value` is true in any process; all processes must call."""
        return bool(self.world.largest([float(value)])[0])

    def _log_is_pending(self) -> bool:
        if not self.log.pending:
            return False
        try:
            self.log.sync()
        except CheckpointError:
            return True
        return False

    def _missing_names(self) -> str:
        return " and ".join([self.path(tag).name for tag in self.missing] or ["a log"])

    def _save(self, progress: Progress, tag: int | str) -> bool:
        """Write one checkpoint and return whether it is on the disk, the same in all processes; all must call."""
        activity.enter("save")
        self.before(self.path(tag), progress)
        with self.state.content(progress, tag) as content:
            failed = self.world.is_main and not self._write(tag, content)
        self.world.barrier()  # writing can take longer than the timeout of a reduction
        return not self._any(failed)

    def _write(self, tag: int | str, content: dict[str, object]) -> bool:
        started, path = time.monotonic(), self.path(tag)
        try:
            self.log.sync()
            checkpoint_file.save(path, content, predecessor=self.path(PREVIOUS) if tag == LATEST else None)
        except CheckpointError as error:
            logger.warning("%s; the run continues and will retry, %s", error, _REMEDY)
            return False
        finally:
            now = time.monotonic()
            self._next_try = now + max(RETRY_SECONDS, (now - started) / RETRY_SHARE)
        logger.info("saved %s", path)
        if isinstance(tag, int) and self.config.keep_last:
            checkpoint_file.remove_older(self.config.output_dir, self.config.exp_name, tag, self.config.keep_last)
        return True
