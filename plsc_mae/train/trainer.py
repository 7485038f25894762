"""The training loop. It knows the Task contract and no method."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import paddle
from paddle import Tensor

from plsc_mae.config import TrainingConfig
from plsc_mae.config.schema import to_yaml
from plsc_mae.data.loader import BatchLoader
from plsc_mae.data.seeding import device_seed
from plsc_mae.errors import CheckpointError, Stopped
from plsc_mae.methods.base import Batch, StagedTask, Task
from plsc_mae.optim import build_optimizer, scaled_lr, set_weight_decay
from plsc_mae.optim.sharding import Sharded, UpdateSharing, share_gradients
from plsc_mae.parallel.tensor import count_parameters
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.saver import Saver
from plsc_mae.train.checkpoint.state import BEST, LATEST, Progress, RunState, checkpoint_to_resume
from plsc_mae.train.log.append_file import replace_content
from plsc_mae.train.log.meters import Meters
from plsc_mae.train.log.run_logger import RunLogger, peak_memory_gib
from plsc_mae.train.nonfinite.policy import NonFinitePolicy
from plsc_mae.train.observers.base import Observer
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.train.signals import StopRequest
from plsc_mae.train.step import PipelineStepper, Stepper, choose_precision, lower_weights

logger = logging.getLogger(__name__)


def peak_lr(config: TrainingConfig, effective_batch: int) -> float:
    """The absolute rate of a config, or its base rate scaled to the batch; a config has one of them."""
    if config.lr is not None and not config.lr_per_256:
        return config.lr
    base = config.blr if config.lr is None else config.lr
    assert base is not None
    return scaled_lr(base, effective_batch)


class Stopwatch:
    """Time of an interval, and the share of it spent waiting for data."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.started = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches, counting the wait for each."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap and the share of them that waited for data; starts a new lap."""
        now = time.perf_counter()
        seconds, waited = now - self.started, self.waited
        self.started, self.waited = now, 0.0
        return seconds, waited / max(seconds, 1e-9)


class Trainer:
    """Trains a Task on a loader as a config says.

    Args:
        task: what to train.
        loader: batches of an epoch, from the position its sampler is set to.
        config: the run's options.
        world: the processes of the run.
        observers: what looks at the network between epochs.
        keep_best: metric of an observer; the checkpoint with the largest is kept as checkpoint-best.pd.
        probe: learns from the features of every step.

    Attributes:
        metrics: what the observers have measured after the last epoch of this process's run.

    Raises:
        CheckpointError: the output folder or a checkpoint cannot be used.
    """

    def __init__(
        self,
        task: Task,
        loader: BatchLoader,
        config: TrainingConfig,
        world: World,
        *,
        observers: Sequence[Observer] = (),
        keep_best: str = "",
        probe: OnlineProbe | None = None,
    ) -> None:
        self.task, self.loader, self.config, self.world = task, loader, config, world
        self.observers, self.keep_best, self.probe = observers, keep_best, probe
        task.gives_features = probe is not None
        self.params = {name: p for name, p in task.model.named_parameters() if not p.stop_gradient}
        self.n_parameters = count_parameters(self.params.values(), world)
        self.groups = task.param_groups(config.weight_decay)
        shares = config.sharding_stage == 1 and world.size > 1 and bool(self.groups)
        sharing = UpdateSharing(self.groups, world.data) if shares else None
        scales = [group.lr_scale for group in self.groups]
        largest, negative = world.largest([max(scales, default=0.0), -min(scales, default=math.inf)])
        self.scales = largest, -negative
        self.updated = self.groups if sharing is None else sharing.mine
        self.optimizer = build_optimizer(
            config.opt, self.updated, betas=config.opt_betas, eps=config.opt_eps, momentum=config.momentum
        )
        self.precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)
        lower_weights(task, self.optimizer, self.precision)
        staged = isinstance(task, StagedTask)
        trained = self._distributed(staged)
        self.stepper = (PipelineStepper if staged else Stepper)(
            trained.layer,
            list(self.params.values()),
            trained.optimizer,
            clip_grad=config.clip_grad,
            precision=self.precision,
            world=world,
            publish=None if sharing is None else sharing.publish,
            sharded=config.sharding_stage > 1,
        )
        self.effective_batch = config.batch_size * world.size * config.accum_iter
        self.lr = peak_lr(config, self.effective_batch)
        self.updates_per_epoch = math.ceil(len(loader) / config.accum_iter)
        self.schedule = task.schedule(config, self.lr, self.updates_per_epoch)
        self.weight_decay = config.weight_decay
        self.progress = Progress(config.start_epoch)
        self.metrics: dict[str, float] = {}
        self.epoch_meters, self.window = Meters(), Meters()
        self.state = RunState(
            task, self.optimizer, self.params, self.stepper.scaler, self.epoch_meters, self.window, probe, world, config
        )
        self.state.collect_weights = trained.collect
        self.numerics = NonFinitePolicy(self.state, self.stepper, loader)
        self.skipped_before = 0
        self._to_probe: list[tuple[Tensor, Tensor]] = []
        self.stop = StopRequest(world)
        self.stopped_by = 0

    def _distributed(self, staged: bool) -> Sharded:
        """The task and its optimizer as they exchange gradients with other processes."""
        stage, world = self.config.sharding_stage, self.world
        if stage > 1 and world.size > 1:
            return share_gradients(self.task, self.optimizer, stage, world.data)
        return Sharded(self.task if staged else world.wrap(self.task), self.optimizer, None)

    def fit(self) -> None:
        """Train to the end of the config, from the checkpoint it asks for.

        Raises:
            CheckpointError: a checkpoint or log cannot be read or written.
            DivergedError: loss or gradients are not finite, and --nan_policy does not go on.
            Stopped: SIGTERM or Ctrl-C has asked for it; the run is saved.
        """
        config, world = self.config, self.world
        with _writing_to(config.output_dir):
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        path = checkpoint_to_resume(config)
        if path is not None:
            self._resume(path)
        at = self.progress
        world.barrier()  # reading a checkpoint may take one of them longer than the others wait in a reduction
        if not world.agree([at.epoch, at.batches_done, at.step]):
            raise CheckpointError(
                f"the processes do not resume from the same point, this one from epoch {at.epoch}, step {at.step}; "
                f"--output_dir {config.output_dir} must be one folder that all machines see"
            )
        if world.is_main:
            with _writing_to(config.output_dir):
                checkpoint_file.remove_leftovers(config.output_dir, config.exp_name)
                header = "# the resolved options of this run; feed them back with --config\n"
                replace_content(Path(config.output_dir) / "config.yaml", to_yaml(config, header).encode())
        self.numerics.start(path, self.progress)
        self.log = RunLogger(config.output_dir, config.log_dir or config.output_dir, active=world.is_main)
        self.log.start(at.step, at.epoch, at.iteration)
        self.saver = Saver(self.state, self.log, config, world, before=self.numerics.before_save)
        self._announce()
        with self.stop.listening():
            self._run(went_on=path is not None and path.parent == Path(config.output_dir))

    def _resume(self, path: Path) -> None:
        self.progress = at = self.state.resume(path)
        if at.ended:
            at.batches_done = total = len(self.loader)
            last = (total - 1) // self.config.accum_iter
            self._set_rates(at.epoch + last * self.config.accum_iter / total, at.epoch * self.updates_per_epoch + last)
        if self.world.rank == 0 and self.world.previous is None:
            self.skipped_before = -at.skipped

    def _run(self, *, went_on: bool) -> None:
        """Train from where the run stands until it is finished or asked to stop.

        Args:
            went_on: whether it goes on in the folder that it has saved to before.
        """
        start = self.progress.place
        try:
            if went_on and self.progress.batches_done == 0:
                self.saver.save_missing(self.progress, self._tags_due())
            while self.progress.ended or not self._is_over():
                if self._agreed_to_stop():
                    break
                if self.progress.ended:
                    self._end_epoch()
                else:
                    self._train_epoch()
            if self.stopped_by and self.progress.place not in (start, self.saver.place):
                self._save(LATEST)
            self.saver.finish(self.progress, self.stop)
        finally:
            self.log.end_epoch()
        if self.stopped_by:
            raise Stopped(self.stopped_by, self._tell_place())

    def _tell_place(self) -> str:
        at = self.progress
        saved = "go on with --auto_resume" if self.config.save_ckpt else "nothing is saved, as --no_save_ckpt asks"
        return f"epoch {at.epoch}, {at.batches_done} of {len(self.loader)} iterations, step {at.step}; {saved}"

    def _agreed_to_stop(self) -> bool:
        """Whether any process was asked to stop; all of them must call."""
        self.stopped_by = self.stopped_by or self.stop.agreed()
        return self.stopped_by > 0

    def _finished(self) -> bool:
        return self.config.max_train_step is not None and self.progress.step >= self.config.max_train_step

    def _train_epoch(self) -> None:
        """Run an epoch from where the run stands; an accumulation group cut short by its end is an update too."""
        config, epoch, total = self.config, self.progress.epoch, len(self.loader)
        self.loader.sampler.set_position(epoch, self.progress.batches_done)
        self.task.train()
        self.log.start_epoch(epoch, total, self.progress.batches_done)
        watch, images = Stopwatch(), 0
        for batch in watch.timed(iter(self.loader)):
            done = self._iterate(batch, total, self.window)
            images += config.batch_size * self.world.size
            self.log.tick()
            if done % config.print_freq == 0 or done == total or self._finished():
                self._report(watch, self.window, images)
                images = 0
            if done == total or done % config.accum_iter:
                continue
            if self._agreed_to_stop():
                return
            if self._finished() or self._save_is_due():
                self._save(LATEST)
            self.saver.retry(self.progress)
            if self._finished():
                return
        self.log.end_epoch()
        self.progress.ended = True

    def _iterate(self, batch: Batch, total: int, window: Meters) -> int:
        """Run one iteration and return how many of the epoch are done."""
        config, i = self.config, self.progress.batches_done
        if i % config.accum_iter == 0:
            self._set_rates(
                self.progress.epoch + i / total, self.progress.epoch * self.updates_per_epoch + i // config.accum_iter
            )
            self.numerics.start_group()
        paddle.seed(device_seed(config.seed, self.progress.epoch, i, self.world.stream))
        group = min(config.accum_iter, total - i // config.accum_iter * config.accum_iter)
        update = (i + 1) % config.accum_iter == 0 or i + 1 == total
        out = self.stepper.backward(self.task.prepare(batch), group_size=group, last=update)
        self.numerics.add(out.loss)
        if self.probe is not None:
            assert out.features is not None
            self._to_probe.append((out.features, batch["label"]))
        updated = self._update() if update else {}
        if updated is not None:
            self._add({**out.logs, **updated}, window)
        if updated and self.probe is not None:
            for features, labels in self._to_probe:
                self._add(self.probe(features, labels), window)
        if update:
            self._to_probe = []
        self.progress.batches_done = i + 1
        return self.progress.batches_done

    def _update(self) -> dict[str, Tensor] | None:
        """End an accumulation group; returns what to log, or None where the update was not made."""
        norm = self.stepper.gradient_norm()
        allowed = self.numerics.allow(norm, self.progress)
        if allowed:
            self.stepper.update(norm)
            self.task.after_step()
        self.progress.step += 1
        return {"grad_norm": norm} if allowed else None

    def _add(self, values: dict[str, Tensor], window: Meters) -> None:
        window.add(values)
        self.epoch_meters.add(values)

    def _set_rates(self, epoch: float, update: int) -> None:
        lr, self.weight_decay = self.schedule(epoch, update)
        self.optimizer.set_lr(lr)
        set_weight_decay(self.optimizer, self.updated, self.weight_decay)

    def _settings(self) -> dict[str, float]:
        """What the update was made with: the largest and smallest rate of a group, weight decay, loss scale."""
        lr, (largest, smallest) = self.optimizer.get_lr(), self.scales
        return {
            "lr": lr * largest,
            "min_lr": lr * smallest,
            "weight_decay": self.weight_decay,
            "loss_scale": self.stepper.loss_scale,
            **self.numerics.counts(self.progress),
        }

    def _save_is_due(self) -> bool:
        return self.config.save_ckpt_steps > 0 and self.progress.step % self.config.save_ckpt_steps == 0

    def _report(self, watch: Stopwatch, window: Meters, images: int) -> None:
        means = window.means(self.world)
        if self.world.is_main:
            for name, count in window.left_out.items():
                logger.warning("%d values of %s were not finite and are left out of its mean", count, name)
        window.clear()
        seconds, data_share = watch.lap()
        left = self.config.epochs * len(self.loader) - (
            self.progress.epoch * len(self.loader) + self.progress.batches_done
        )
        iterations = images / (self.config.batch_size * self.world.size)
        record = {
            "epoch": self.progress.epoch,
            "iteration": self.progress.batches_done,
            "step": self.progress.step,
            **{name: value for name, value in means.items() if name != "grad_norm"},
            **self._settings(),
            "grad_norm": means.get("grad_norm", 0.0),
            "images_per_second": images / seconds,
            "data_share": data_share,
            "memory_gib": peak_memory_gib(self.world.is_gpu),
            "time": seconds,
        }
        self.log.line(record, total=len(self.loader), eta=left * seconds / iterations)

    def _end_epoch(self) -> None:
        """Look, log and save after an epoch; nothing is done where the run is asked to stop meanwhile."""
        epoch, means = self.progress.epoch, self.epoch_meters.means(self.world)
        record = {f"train_{name}": value for name, value in {**self._settings(), **means}.items()}
        position = {"epoch": epoch, "step": self.progress.step, "skipped_images": self._count_skipped()}
        try:
            metrics = self._observe(epoch)
        except Stopped as stop:
            self.stopped_by = stop.number
            return
        self.log.epoch({**record, **position, "n_parameters": self.n_parameters}, metrics)
        self.metrics, self.skipped_before = metrics, self.loader.skipped
        self.epoch_meters.clear()
        self.progress = at = dataclasses.replace(self.progress, epoch=epoch + 1, batches_done=0, ended=False)
        before = at.best, at.best_step
        if metrics.get(self.keep_best, -math.inf) > at.best:
            at.best, at.best_step = metrics[self.keep_best], at.step
        self._save(*self._tags_due())
        if BEST in self.saver.lacking and not self._is_over():
            at.best, at.best_step = before  # that of the file that there is

    def _tags_due(self) -> list[int | str]:
        """The checkpoints that are to be written where an epoch has ended."""
        at = self.progress
        tags: list[int | str] = []
        if at.step and (self._is_over() or at.epoch % self.config.save_ckpt_freq == 0):
            tags.append(at.epoch - 1)
        elif at.step and self._save_is_due():
            tags.append(LATEST)
        return [*tags, BEST] if at.best_step == at.step else tags

    def _count_skipped(self) -> int:
        """Images of the epoch that were passed over, in all processes; of pipelines the first stages read them."""
        skipped = self.world.sum(paddle.to_tensor(float(self.loader.skipped - self.skipped_before)))
        return int(self.world.pipeline.sum(skipped))

    def _is_over(self) -> bool:
        return self.progress.epoch >= self.config.epochs or self._finished()

    def _observe(self, epoch: int) -> dict[str, float]:
        """Let those look whose turn it is after an epoch, and return what they have measured.

        Running statistics of batch norms, of which every process has those of its own batches, become the main
        process's before, as PyTorch's data parallelism has it.
        """
        self.world.copy_from_main(self.task.model.buffers())
        metrics: dict[str, float] = {}
        for observer in self.observers:
            if epoch + 1 == self.config.epochs or (epoch + 1) % observer.every == 0:
                seen = observer(self.stop)
                metrics |= seen.metrics
                self.log.pictures(seen.pictures, epoch)
        return metrics

    def _save(self, *tags: int | str) -> None:
        """Write checkpoints of where the run stands."""
        if self.config.save_ckpt and tags:
            self.progress.skipped = self._count_skipped()
            self.saver.save(self.progress, *tags)

    def _announce(self) -> None:
        config, world = self.config, self.world
        if not world.is_main:
            return
        rate = config.blr if config.lr is None else config.lr
        scales = config.lr is None or config.lr_per_256
        base = f" ({rate:g} x {self.effective_batch} / 256)" if scales else ""
        parts = f"{world}" if world.size == world.processes else f"{world.size} in {world}"
        for line in (
            f"{config.model}: {self.n_parameters / 1e6:.1f} M trainable parameters, {self.precision.note}",
            f"batch {config.batch_size} x {parts} x accum_iter {config.accum_iter} = {self.effective_batch} images per "
            f"update; learning rate {self.lr:.4g}{base}",
            f"{len(self.loader.dataset)} images, {self.updates_per_epoch} updates per epoch, {config.epochs} epochs, "
            f"{self.updates_per_epoch * config.epochs} updates",
        ):
            logger.info(line)


@contextlib.contextmanager
def _writing_to(folder: str) -> Iterator[None]:
    """Tell of an output folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another --output_dir"
        ) from None
