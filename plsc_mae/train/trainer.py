"""The training loop. It depends on the Task contract and on no particular method."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

from plsc_mae.data.loader import BatchLoader
from plsc_mae.data.seeding import device_seed
from plsc_mae.errors import CheckpointError, Stopped
from plsc_mae.folder_lock import locked
from plsc_mae.methods.base import Batch
from plsc_mae.optim import ParamGroup, Schedule
from plsc_mae.parallel import activity, hang_detector
from plsc_mae.parallel.world import World
from plsc_mae.train.announcements import announce_end, announce_start, describe_stop
from plsc_mae.train.checkpoint.cadence import due_tags, is_over, reached_last_step, step_save_is_due
from plsc_mae.train.checkpoint.folder import Start, create_folder, find_start, prepare_folder
from plsc_mae.train.checkpoint.saver import Saver
from plsc_mae.train.checkpoint.state import BEST, LATEST, Progress, RunState
from plsc_mae.train.history import recorded
from plsc_mae.train.log.histograms import block_values
from plsc_mae.train.log.meters import Stopwatch
from plsc_mae.train.log.run_logger import RunLogger, peak_memory_gib
from plsc_mae.train.nonfinite.policy import NonFinitePolicy
from plsc_mae.train.observers.base import Observer
from plsc_mae.train.signals import StopRequest
from plsc_mae.train.step import AccumulationGroup
from plsc_mae.train.trivial_losses import TrivialLosses
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)


class Trainer:
    """Trainer of a Task over the epochs of a run; `train.setup.build_trainer` builds it from the options.

    All processes must create it and call `fit`.

    Args:
        state: everything that a checkpoint stores.
        loader: yields the batches of an epoch, starting at the position of its sampler.
        schedule: returns the learning rate and weight decay of an update.
        policy: handles updates whose loss or gradient norm is not finite.
        log: writes the log files and console lines.
        saver: writes checkpoints.
        n_parameters: number of trainable parameters of the whole network, for the log.
        observers: evaluate the network or draw pictures, see `Observer`.
        keep_best: name of an observer's metric; the checkpoint with its largest value is kept as checkpoint-best.pd. ""
            keeps none.
        after_epoch: called in the main process with the position after each epoch, once it is logged and before its
            checkpoints are saved; None for nothing.

    Attributes:
        progress: position of the run.
        metrics: the metrics, by name, of the observers that were due after the last finished epoch.
        chance: largest value of the metric `keep_best` that luck explains, for the history; None leaves it out.
    """

    def __init__(
        self,
        state: RunState,
        loader: BatchLoader,
        schedule: Schedule,
        policy: NonFinitePolicy,
        log: RunLogger,
        saver: Saver,
        *,
        n_parameters: int,
        observers: Sequence[Observer] = (),
        keep_best: str = "",
        after_epoch: Callable[[Progress], None] | None = None,
    ) -> None:
        self.state, self.loader, self.schedule = state, loader, schedule
        self.policy, self.log, self.saver = policy, log, saver
        self.n_parameters, self.observers, self.keep_best = n_parameters, observers, keep_best
        self.after_epoch = after_epoch
        self.config, self.world, self.stepper = state.config, state.world, state.stepper
        self.task, self.probe, self.accumulation = state.task, state.probe, state.accumulation
        self.trivial_losses = TrivialLosses(self.task, Path(self.config.output_dir))
        self.lr_scales = _extreme_lr_scales(self.stepper.groups, self.world)
        self.stop = StopRequest(self.world)
        self.progress = Progress(self.config.start_epoch)
        self.metrics: dict[str, float] = {}
        self.chance: float | None = None
        self.stopped_by = 0  # number of the signal that stops the run; 0 before one arrives
        self.started = time.perf_counter()
        self.first_step = 0  # updates before this start
        self.skipped_before = 0  # unreadable images of this process before the current epoch

    # ------------------------------------------------------------------------------------------- start and end

    def fit(self, start: Start | None = None) -> None:
        """Train to the end of the run; if the run is already complete, only write checkpoints that a kill prevented.

        Args:
            start: result of an earlier call of `find_start`; None calls it now.

        Raises:
            CheckpointError: a checkpoint or log cannot be read or written, a checkpoint does not fit this run, or the
                output folder holds another run.
            FolderError: another run writes to the output folder.
            ConfigError: the position of the checkpoint is not between two updates of this run.
            DataError: images cannot be read, see --bad_image, or a feature is not finite.
            DivergedError: the loss or a gradient is not finite, and --nan_policy stops the run.
            Stopped: SIGTERM or Ctrl-C stopped the run. A checkpoint of the position has been saved, unless this start
                made no progress or --no_save_ckpt is set.
        """
        folder = Path(self.config.output_dir)
        is_new = not folder.exists()
        create_folder(self.config)
        if start is None:
            start = find_start(self.config)
            self.world.barrier()  # all processes have found the folder unlocked
        lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.world.is_main:  # `find_start` has waited: if another run has the lock by now, `start` is obsolete
            lock = locked(folder, "--output_dir", wait=False)
        try:
            with lock:
                self._fit(start)
        finally:
            if is_new and self.world.is_main:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # which is empty if the run was refused; other folders stay

    def _fit(self, start: Start) -> None:
        """Train from `start` to the end of the run, in an output folder that belongs to this run alone."""
        path, at = self._resume(start), self.progress
        record = start.record.with_id(self.world)
        self.state.run = self.log.run = record.run
        if path is not None and not at.ended and is_over(self.config, at):
            self._finish_again(path)
            return
        watching = hang_detector.watching(self.config.hang_timeout, self.config.output_dir, at.step)
        with self.stop.listening(), watching:
            if self.world.is_main:
                prepare_folder(self.config, start._replace(record=record))
                announce_start(self.config, self.world, record.run, at, path)
            with recorded(
                Path(self.config.output_dir), self._describe_start(record.run, path), self.world, self._position
            ):
                self.policy.start(path, at)
                self.log.start(at.step, at.epoch, at.iteration)
                if self.world.is_main:
                    self.trivial_losses.start(record.run, record.origin_run)
                try:
                    self._run(in_same_folder=path is not None and self._is_in_output_folder(path))
                finally:
                    self.log.close()

    def _describe_start(self, run: str, path: Path | None) -> dict[str, Any]:
        """Return the values of a start for the history of the run, by name."""
        images = self.state.images_per_iteration * self.config.accum_iter
        return {
            "run": run,
            "resumed": str(path or ""),
            "images": len(self.loader.dataset),
            "images_per_update": images,
            **({} if self.chance is None else {"chance": self.chance}),
        }

    def _position(self) -> dict[str, int]:
        return {"epoch": self.progress.epoch, "step": self.progress.step}

    def _resume(self, start: Start) -> Path | None:
        """Resume from the checkpoint of `start` and return its path, None without one; all processes must call."""
        config, path = self.config, start.checkpoint
        if path is not None:
            self._restore(path)
        at = self.progress
        self.world.barrier()  # reading a checkpoint can take one process longer than the timeout of a reduction
        if not self.world.agree([at.epoch, at.batches_done, at.step]):
            raise CheckpointError(
                f"the processes resume from different points, this one from epoch {at.epoch}, step {at.step}; "
                f"make --output_dir {config.output_dir} one folder that all machines share"
            )
        return path

    def _is_in_output_folder(self, path: Path) -> bool:
        return path.absolute().parent == Path(self.config.output_dir).absolute()

    def _finish_again(self, path: Path) -> None:
        """Write checkpoints that a kill prevented, then log that nothing is left to do; all processes must call."""
        config, at = self.config, self.progress
        if self._is_in_output_folder(path) and at.batches_done == 0:
            self.saver.save_absent(at, due_tags(config, at))
            self.saver.finish(at, self.stop)
        if at.epoch >= config.epochs:
            done, more = f"{config.epochs} of {counted(config.epochs, 'epoch')}", "--epochs"
            held = f" holds {at.epoch}" if at.epoch > config.epochs else ""
        else:
            limit = config.max_train_step or 0
            done, more = f"{limit} of {counted(limit, 'update')}", "--max_train_step"
            held = f" holds {at.step}" if at.step > limit else ""
        logger.info("nothing left to do: %s are done (%s%s); a larger %s continues the run", done, path, held, more)

    def _restore(self, path: Path) -> None:
        self.progress = at = self.state.resume(path)
        if at.ended:
            at.batches_done = len(self.loader)
            self._set_rates(self.accumulation.group(at.batches_done - 1))
        if self.world.rank == 0 and self.world.previous is None:
            self.skipped_before = -at.skipped

    def _run(self, *, in_same_folder: bool) -> None:
        """Train until the run is finished, or raise Stopped after a stop request; all processes must call.

        Args:
            in_same_folder: whether the run resumes from its own output folder, where a kill may have prevented the last
                checkpoints of an epoch.
        """
        start, self.first_step = self.progress.position_key, self.progress.step
        try:
            if in_same_folder and self.progress.batches_done == 0:
                self.saver.save_absent(self.progress, due_tags(self.config, self.progress))
            if self.progress.step == 0:
                self._observe_start()
            while self.progress.ended or not is_over(self.config, self.progress):
                if self._agreed_to_stop():
                    break
                if self.progress.ended:
                    self._end_epoch()
                else:
                    self._train_epoch()
            self.trivial_losses.finish()
            if self.stopped_by and self.progress.position_key not in (start, self.saver.saved_position):
                self._save(LATEST)
            self.saver.finish(self.progress, self.stop)
        finally:
            self.log.end_epoch()
        if self.world.is_main:
            self._announce_end()
        if self.stopped_by:
            raise Stopped(self.stopped_by, self._describe_stop(moved=self.progress.position_key != start))

    def _describe_stop(self, *, moved: bool) -> str:
        """Return the description of a stop; `moved` is whether the position has changed since the start."""
        saved = self.saver.saved_path
        return describe_stop(self.state, self.progress, iterations=len(self.loader), saved=saved, moved=moved)

    def _announce_end(self) -> None:
        announce_end(
            self.config,
            self.progress,
            saved=self.saver.saved_path,
            best=self.saver.path(BEST) if self.keep_best and self.config.save_ckpt else None,
            best_epoch=self.log.epoch_of.get(self.progress.best_step),
            first_step=self.first_step,
            seconds=time.perf_counter() - self.started,
            stopped=self.stopped_by > 0,
        )

    def _agreed_to_stop(self) -> bool:
        """Set `stopped_by` if any process was asked to stop, and return whether one was; all processes must call."""
        activity.enter("collective")
        self.stopped_by = self.stopped_by or self.stop.agreed()
        return self.stopped_by > 0

    # ------------------------------------------------------------------------------------------------- updates

    def _train_epoch(self) -> None:
        """Train the rest of the epoch; all processes must call.

        A stop request or --max_train_step can interrupt it after an update; `progress.ended` is then still False.
        """
        config, at, total = self.config, self.progress, len(self.loader)
        self.loader.sampler.set_position(at.epoch, at.batches_done)
        self.task.train()
        self.log.start_epoch(at.epoch, total, at.batches_done)
        watch, images = Stopwatch(), 0
        first = self.accumulation.group(at.batches_done).last + 1 if self.log.is_new else 0
        for batch in activity.fetching(watch.timed(iter(self.loader))):
            self.iterate(batch)
            done = at.batches_done
            images += self.state.images_per_iteration
            self.log.tick()
            if done % config.print_freq == 0 or done == total or reached_last_step(config, at):
                self._report(watch, images)
                images = 0
            elif done == first:
                self._report_first(watch, images)
            if done == total or not self.accumulation.is_start(done):
                continue
            self.stopped_by = self.stop.agreed_in_update()
            if self.stopped_by:
                return
            if reached_last_step(config, at) or step_save_is_due(config, at):
                self._save(LATEST)
            self.saver.retry(at)
            if reached_last_step(config, at):
                return
        self.log.end_epoch()
        at.ended = True

    def iterate(self, batch: Batch) -> None:
        """Run one iteration on a batch of the loader; all processes must call.

        The last iteration of an accumulation group also updates the weights, or discards the gradients.
        """
        activity.enter("forward")
        at, i = self.progress, self.progress.batches_done
        group = self.accumulation.group(i)
        if i == group.start:
            self._set_rates(group)
            self.policy.start_group()
        paddle.seed(device_seed(self.config.seed, at.epoch, i, self.world.stream))
        prepared = self.task.prepare(batch)
        self.trivial_losses.add(prepared)
        out = self.stepper.forward_backward(prepared, group_size=group.size, last=i == group.last)
        self.loader.transfer_next()
        self.policy.add(out.loss)
        if self.probe is not None:
            assert out.features is not None
            self.probe.remember(out.features, batch["label"])
        if i == group.last:
            self._end_group(out.logs)
        else:
            self.state.add_metrics(out.logs)
        at.batches_done = i + 1

    def _end_group(self, logs: dict[str, Tensor]) -> None:
        """Apply or discard the update of an accumulation group; all processes must call.

        Only an applied update trains the probe and adds `logs`, the values of the group's last iteration, to the means.
        """
        activity.enter("collective")
        decide = functools.partial(self.policy.exchange_and_decide, progress=self.progress, stop=self.stop)
        ends_epoch = self.progress.batches_done + 1 == len(self.loader)
        on_applied = self._log_histograms if self.config.histograms and ends_epoch else None
        result = self.stepper.apply_update(decide, on_applied)
        self.progress.step += 1
        activity.finish_update(self.progress.step)
        if result.applied:
            self.state.add_metrics({**logs, "grad_norm": result.norm})
        if self.probe is not None and result.applied:
            for values in self.probe.learn():
                self.state.add_metrics(values)
        elif self.probe is not None:
            self.probe.forget()

    def _log_histograms(self, params: Mapping[str, Tensor]) -> None:
        """Log histograms of the main process's parameters, and of the gradients that just updated them, by block."""
        if self.world.is_main:
            self.log.histograms(block_values(params), self.progress.step + 1)

    def _set_rates(self, group: AccumulationGroup) -> None:
        epoch = self.progress.epoch
        done = epoch + group.start / len(self.loader)
        self.stepper.set_rates(self.schedule(done, epoch * self.accumulation.updates + group.number))

    # ---------------------------------------------------------------------------------------------------- logs

    def _settings(self) -> dict[str, float]:
        """Return the extreme learning rates, the weight decay, the loss scale and `policy.counts` by name."""
        lr, (largest, smallest) = self.stepper.optimizer.get_lr(), self.lr_scales
        return {
            "lr": lr * largest,
            "min_lr": lr * smallest,
            "weight_decay": self.stepper.weight_decay,
            "loss_scale": self.stepper.scaler.value,
            **self.policy.counts(self.progress),
        }

    def _report(self, watch: Stopwatch, images: int) -> None:
        """Log the means since the previous log line, and the speed of `images` images; all processes must call."""
        activity.enter("log")
        window = self.state.window
        means = window.means(self.world)
        if self.world.is_main:
            for name, count in window.left_out.items():
                logger.warning("%d non-finite values of %s are left out of its mean", count, name)
        window.clear()
        record, eta = self._record(means, watch.lap(), images)
        self.log.line(record, total=len(self.loader), eta=eta)

    def _report_first(self, watch: Stopwatch, images: int) -> None:
        """Print a line after the first update of this start, because the first log line can be minutes away.

        All processes must call. After a resume, the printed means include the updates between the last log line and the
        checkpoint.
        """
        record, eta = self._record(self.state.window.means(self.world), watch.current(), images)
        self.log.print_line(record, total=len(self.loader), eta=eta)

    def _record(
        self, means: Mapping[str, float], lap: tuple[float, float], images: int
    ) -> tuple[dict[str, float], float]:
        """Return (record of a print interval, estimated seconds to the end of the run)."""
        at, (seconds, data_share) = self.progress, lap
        record = {
            "epoch": at.epoch,
            "iteration": at.batches_done,
            "step": at.step,
            **{name: value for name, value in means.items() if name != "grad_norm"},
            **self._settings(),
            "grad_norm": means.get("grad_norm", 0.0),
            "images_per_second": images / seconds,
            "data_share": data_share,
            "memory_gib": peak_memory_gib(self.world.is_gpu),
            "time": seconds,
        }
        left = (self.config.epochs - at.epoch) * len(self.loader) - at.batches_done
        if self.config.max_train_step is not None:
            left = min(left, (self.config.max_train_step - at.step) * self.config.accum_iter)
        return record, left * seconds * self.state.images_per_iteration / images

    def _count_skipped(self) -> int:
        """Count the unreadable images of the epoch in all processes; all processes must call."""
        skipped = self.world.sum(paddle.to_tensor(float(self.loader.skipped - self.skipped_before)))
        return int(self.world.pipeline.sum(skipped))  # only the first stages read images

    # --------------------------------------------------------------------------------- evaluation, checkpoints

    def _end_epoch(self) -> None:
        """Run the observers, then log and save the finished epoch; all processes must call.

        If a stop request ends an observer, the epoch is not logged, and a resumed run calls this method again.
        """
        activity.enter("log")
        self.trivial_losses.finish()
        epoch, means = self.progress.epoch, self.state.epoch_meters.means(self.world)
        record = {f"train_{name}": value for name, value in {**self._settings(), **means}.items()}
        position = {"epoch": epoch, "step": self.progress.step, "skipped_images": self._count_skipped()}
        try:
            metrics, constant = self._observe(epoch)
        except Stopped as stop:
            self.stopped_by = stop.number
            return
        activity.enter("log")
        self.log.epoch({**record, **position, "n_parameters": self.n_parameters}, metrics, constant)
        self.metrics, self.skipped_before = metrics, self.loader.skipped
        self.state.epoch_meters.clear()
        self.progress = at = dataclasses.replace(self.progress, epoch=epoch + 1, batches_done=0, ended=False)
        before = at.best, at.best_step
        if metrics.get(self.keep_best, -math.inf) > at.best:
            at.best, at.best_step = metrics[self.keep_best], at.step
        if self.after_epoch is not None and self.world.is_main:
            self.after_epoch(at)
        self._save(*due_tags(self.config, self.progress))
        if BEST in self.saver.missing and not is_over(self.config, self.progress):
            at.best, at.best_step = before  # checkpoint-best.pd still holds the earlier one

    def _observe(self, epoch: int) -> tuple[dict[str, float], set[str]]:
        """Run the observers that are due after an epoch; all processes must call.

        Returns their metrics by name, and the names of those that are constant, see `Observation`.

        The running statistics of batch normalization differ between processes, because each process computes them from
        its own batches. All processes evaluate with the statistics of the first data-parallel process, as in PyTorch's
        data parallelism.
        """
        activity.enter("evaluation")
        self.world.copy_from_main(self.task.model.buffers())
        metrics: dict[str, float] = {}
        constant: set[str] = set()
        for observer in self.observers:
            if epoch + 1 == self.config.epochs or (epoch + 1) % observer.every == 0:
                seen = observer(self.stop)
                metrics |= seen.metrics
                constant.update(seen.constant)
                self.log.pictures(seen.pictures, self.progress.step)
        return metrics, constant

    def _observe_start(self) -> None:
        """Log the pictures of the network before its first update; all processes must call."""
        activity.enter("evaluation")
        for observer in self.observers:
            if observer.at_start:
                self.log.pictures(observer(self.stop).pictures, self.progress.step)

    def _save(self, *tags: int | str) -> None:
        """Write the checkpoints `tags` of this position unless --no_save_ckpt is set; all processes must call."""
        if self.config.save_ckpt and tags:
            self.progress.skipped = self._count_skipped()
            self.saver.save(self.progress, *tags)


def _extreme_lr_scales(groups: Sequence[ParamGroup], world: World) -> tuple[float, float]:
    """Return the (largest, smallest) learning rate factor of all parameter groups in all processes; all must call."""
    scales = [group.lr_scale for group in groups]
    largest, negative = world.largest([max(scales, default=0.0), -min(scales, default=sys.float_info.max)])
    return largest, -negative
