"""When a disk takes no checkpoint the run goes on and tries again; all processes know what could not be saved."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plsc_mae.config import TrainingConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.state import BEST, LATEST, PREVIOUS, Progress, RunState
from plsc_mae.train.log.run_logger import RunLogger
from plsc_mae.train.signals import StopRequest

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # at least, between two tries
RETRY_SHARE = 0.1  # of a run's time that tries may take
FIRST_WAITS = (2.0, 4.0, 8.0, 16.0)  # seconds between tries once the training is done, then RETRY_SECONDS
PATIENCE = 3600.0  # seconds of trying then
_REMEDY = "free some space or make the folder writable"


class Saver:
    """Saves a run; its main process writes the files.

    Every method but the constructor is to be called by all processes.

    Args:
        state: what is saved.
        log: flushed before, so that a checkpoint never knows of more than the logs.
        config: the options.
        world: the processes of the run.
        before: is told of every file that is going to be written.

    Attributes:
        lacking: tags of the last save that could not be written.
        place: where the run stood at the last save that could.
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
        self.lacking: tuple[int | str, ...] = ()
        self.place: tuple[int, ...] = ()
        self._next_try = 0.0

    def path(self, tag: int | str) -> Path:
        """Where the checkpoint `tag` is."""
        return checkpoint_file.checkpoint_path(self.config.output_dir, self.config.exp_name, tag)

    def save(self, progress: Progress, *tags: int | str) -> None:
        """Write the checkpoints of a position; those that the disk does not take are `lacking` until the next call."""
        if self.config.save_ckpt and tags:
            self.lacking = tuple(tag for tag in tags if not self._save(progress, tag))
            if set(tags) - set(self.lacking):
                self.place = progress.place

    def save_missing(self, progress: Progress, tags: Sequence[int | str]) -> None:
        """Write those checkpoints of a position that a kill has left out."""
        main = self.world.is_main
        there = [float(main and checkpoint_file.is_saved(self.path(tag), progress.step)) for tag in tags]
        found = self.world.largest(there) if tags else []
        self.save(progress, *(tag for tag, is_there in zip(tags, found, strict=True) if not is_there))

    def retry(self, progress: Progress) -> None:
        """Save where the run stands if an earlier save has failed and the last try was some time ago."""
        if any(tag != BEST for tag in self.lacking) and self._is_due():
            self.save(progress, LATEST)

    def _is_due(self) -> bool:
        return self._any(self.world.is_main and time.monotonic() > self._next_try)

    def finish(self, progress: Progress, stop: StopRequest) -> None:
        """Come to an end with everything on the disk, and wait for the disk if need be.

        Raises:
            CheckpointError: something could not be written for an hour, or until the run was asked to stop.
        """
        deadline = time.monotonic() + PATIENCE
        waits = itertools.chain(FIRST_WAITS, itertools.repeat(RETRY_SECONDS))
        while self.lacking or self._any(self._logs_lack()):
            if self._any(bool(stop.signal) or (self.world.is_main and time.monotonic() > deadline)):
                raise CheckpointError(
                    f"the run ends but {self._tell_lacking()} could not be written to {self.config.output_dir}; "
                    f"{_REMEDY} and go on from the last checkpoint with --auto_resume"
                )
            until = time.monotonic() + next(waits)
            while time.monotonic() < until and not stop.signal:
                time.sleep(0.1)
            self.world.barrier()
            if self.lacking:
                self.save(progress, *self.lacking)

    def _any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.world.largest([float(value)])[0])

    def _logs_lack(self) -> bool:
        if not self.log.pending:
            return False
        try:
            self.log.sync()
        except CheckpointError:
            return True
        return False

    def _tell_lacking(self) -> str:
        return " and ".join([self.path(tag).name for tag in self.lacking] or ["a log"])

    def _save(self, progress: Progress, tag: int | str) -> bool:
        """Write one checkpoint; returns, in all processes, whether it is on the disk."""
        self.before(self.path(tag), progress)
        with self.state.content(progress, tag) as content:
            failed = self.world.is_main and not self._write(tag, content)
        self.world.barrier()  # writing may take longer than the others would wait in a reduction
        return not self._any(failed)

    def _write(self, tag: int | str, content: dict[str, object]) -> bool:
        started, path = time.monotonic(), self.path(tag)
        try:
            self.log.sync()
            checkpoint_file.save(path, content, predecessor=self.path(PREVIOUS) if tag == LATEST else None)
        except CheckpointError as error:
            logger.warning("%s; the run goes on and tries again, %s", error, _REMEDY)
            return False
        finally:
            now = time.monotonic()
            self._next_try = now + max(RETRY_SECONDS, (now - started) / RETRY_SHARE)
        logger.info("saved %s", path)
        if isinstance(tag, int) and self.config.keep_last:
            checkpoint_file.remove_older(self.config.output_dir, self.config.exp_name, tag, self.config.keep_last)
        return True
