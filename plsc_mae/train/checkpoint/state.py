"""State of a run: its position, the content of its checkpoints, and resuming from a checkpoint."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae import console
from plsc_mae.config import TrainingConfig
from plsc_mae.config.schema import plain_values
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.completeness import TEACHERS, require_complete
from plsc_mae.optim import load_optimizer_state, master_weights, optimizer_tensors, stored_optimizer_state
from plsc_mae.parallel.gather import Collection, Holdings
from plsc_mae.parallel.tensor import my_part, shard_of, shards_of
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.file import LazyDict
from plsc_mae.train.log.meters import Meters, finite_values
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.train.step import Accumulation, Stepper
from plsc_mae.weights.convert import LoadReport
from plsc_mae.weights.finite import require_finite
from plsc_mae.weights.reader import Checkpoint
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

LATEST, PREVIOUS, BEST = "latest", "previous", "best"
HALVES = (paddle.float16, paddle.bfloat16)
# Options whose changes between two starts of a run are not logged.
UNREPORTED_OPTIONS = (
    *("resume", "auto_resume", "overwrite", "max_train_step"),
    *("output_dir", "log_dir", "logger", "quiet", "json"),
)


@dataclass
class Progress:
    """Position of a run."""

    epoch: int  # current epoch, from 0
    batches_done: int = 0  # number of finished iterations of the epoch
    step: int = 0  # number of updates since the start of the run, including discarded ones
    # largest value so far of the metric that selects checkpoint-best.pd, without values
    # whose checkpoint could not be written
    best: float = -math.inf
    skipped_updates: int = 0  # number of updates skipped because of a non-finite loss or gradient norm
    skipped_in_a_row: int = 0  # number of skipped updates since the last applied update
    rollbacks: int = 0  # number of rollbacks because of a non-finite loss or gradient norm
    rollbacks_in_a_row: int = 0  # number of rollbacks since the last checkpoint with new updates
    best_step: int = -1  # `step` at the time of `best`; -1 before the first
    ended: bool = False  # whether all updates of the epoch are done, but its evaluation and checkpoint are not
    skipped: int = 0  # number of unreadable images of the epoch in all processes, counted at the last save
    # after a resume, `batches_done` as the run that saved the checkpoint counted it,
    # whose batch size may differ; not updated afterwards
    iteration: int = 0

    @property
    def bad_updates(self) -> dict[str, int]:
        """The four counts that concern non-finite updates, by name."""
        names = ("skipped_updates", "skipped_in_a_row", "rollbacks", "rollbacks_in_a_row")
        return {name: getattr(self, name) for name in names}

    @property
    def position_key(self) -> tuple[int, ...]:
        """Key that is unique to this position of the run."""
        return self.step, self.epoch, self.batches_done, self.ended


class RunState:
    """All state of a run that a checkpoint stores.

    Args:
        stepper: holds the network, optimizer and loss scale.
        accumulation: division of the iterations into accumulation groups.
        probe: classifier trained on the features of the training batches; None for none.
        world: processes of the run.
        config: options of the run.

    Attributes:
        epoch_meters: running means of the current epoch.
        window: running means since the last log line.
        run: id of the run; "" before the run has started.
    """

    def __init__(
        self,
        stepper: Stepper,
        accumulation: Accumulation,
        probe: OnlineProbe | None,
        world: World,
        config: TrainingConfig,
    ) -> None:
        self.stepper, self.accumulation, self.probe = stepper, accumulation, probe
        self.world, self.config = world, config
        self.task = stepper.task
        self.epoch_meters, self.window = Meters(), Meters()
        self.run = ""

    @property
    def images_per_iteration(self) -> int:
        """Number of images in one iteration, over all processes."""
        return self.config.batch_size * self.world.size

    def add_metrics(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one iteration to the running means, which leave out non-finite values."""
        if values:
            finite = finite_values(values)
            self.window.add(finite)
            self.epoch_meters.add(finite)

    @contextlib.contextmanager
    def content(self, progress: Progress, tag: int | str) -> Iterator[dict[str, Any]]:
        """Yield the content of the checkpoint `tag`; all processes must enter this context.

        In the main process the tensors of network, optimizer and task are in `LazyDict` dictionaries. While these are
        written, they receive the tensors of the other processes. The other processes send their tensors and get an
        empty dictionary.
        """
        means = {"meters": self.epoch_meters.state(self.world), "window": self.window.state(self.world)}
        if self.stepper.gather_weights is not None:
            self.stepper.gather_weights()
        extra = self.task.extra_state()
        sources = {
            "model": self._collection(self._weights()),
            "optimizer": self._optimizer_collection(),
            **{name: self._collection(value) for name, value in extra.items() if _has_tensors(value)},
        }
        if not self.world.is_main:
            for collection in sources.values():
                collection.serve()
            yield {}
            return
        streams = {name: iter(collection.items()) for name, collection in sources.items()}
        sections = {name: LazyDict(functools.partial(_entries, stream)) for name, stream in streams.items()}
        try:
            yield {
                **sections,  # in the order in which the other processes send them
                **{name: value for name, value in extra.items() if name not in sections},
                **({} if self.probe is None else self.probe.extra_state()),
                **self._position(progress, tag),
                **means,
            }
        finally:
            for stream in streams.values():  # after a failed write the other processes still have tensors to send
                collections.deque(stream, maxlen=0)

    def _position(self, progress: Progress, tag: int | str) -> dict[str, Any]:
        """Return position, options, counts and loss scale as plain data by name."""
        scaler = self.stepper.scaler.state_dict()
        epochs = {LATEST: progress.epoch, BEST: progress.epoch - 1}  # the current epoch, the last finished one
        return {
            "scaler": {name: np.asarray(value).tolist() for name, value in scaler.items()},
            "epoch": epochs[tag] if isinstance(tag, str) else tag,
            "step": progress.step,
            "run": self.run,
            "position": {
                "epoch": progress.epoch,
                "images": progress.batches_done * self.images_per_iteration,
                "iteration": progress.batches_done,
                "ended": progress.ended,
                "skipped": progress.skipped,
            },
            "best": progress.best,
            "best_step": progress.best_step,
            "method": self.config.method,
            "phase": self.config.phase,
            "args": plain_values(self.config),
            "bad_updates": progress.bad_updates,
        }

    def _weights(self) -> dict[str, Tensor]:
        """Return the network's tensors by name; float32 copies in this process's optimizer replace 16-bit weights.

        If the state is `scattered`, 16-bit weights without a copy are left out: another process has the copy.
        """
        tensors, copies = dict(self.task.model.state_dict()), master_weights(self.stepper.optimizer)
        for name, param in self.stepper.params.items():
            if param.name in copies:
                tensors[name] = copies[param.name]
            elif param.dtype in HALVES and self.scattered:
                del tensors[name]
        return tensors

    def _collection(self, tensors: Mapping[str, Tensor]) -> Collection:
        shards = shards_of(self.task.model)
        return Collection(Holdings(tensors, shards), self.world, scattered=self.scattered)

    def _optimizer_collection(self) -> Collection:
        """Return the collection of accumulators by keys "parameter/accumulator"; all processes must call.

        Accumulators of the shape of a sharded parameter are sharded like it.
        """
        tensors, shards, params = {}, {}, self.stepper.params
        for name, accumulators in optimizer_tensors(self.stepper.optimizer, params).items():
            shard = shard_of(params[name])
            for key, tensor in accumulators.items():
                tensors[f"{name}/{key}"] = tensor
                if shard is not None and tensor.shape == params[name].shape:
                    shards[f"{name}/{key}"] = shard
        return Collection(Holdings(tensors, shards), self.world, scattered=self.scattered)

    @property
    def scattered(self) -> bool:
        """True if the main process may lack tensors of the run."""
        return self.world.tensor.size * self.world.pipeline.size > 1 or (
            self.config.sharding_stage > 0 and self.world.size > 1
        )

    def resume(self, path: Path) -> Progress:
        """Restore a checkpoint, print its content and options that have changed since, and return the position.

        Both are rows of the overview, which is being printed.

        Raises:
            CheckpointError: the file cannot be read, does not fit this run, or holds values that are not finite.
            ConfigError: its position is not between two updates of this run.
        """
        stored = checkpoint_file.load(path)
        self._check_kind(stored)
        require_finite(stored.tensors, str(path), "resume from an earlier checkpoint with --resume FILE")
        progress = self.restore(stored)
        optimizer = sum(name.startswith("optimizer/") for name in stored.tensors)
        console.report_row(
            "resumed",
            f"from {path}: epoch {progress.epoch}, step {progress.step}; loaded "
            f"{counted(len(stored.model), 'tensor')} of the network and {optimizer} of the optimizer",
        )
        current = plain_values(self.config)
        for name, before in stored.meta["args"].items():
            now = current.get(name, before)
            if now != before and name not in UNREPORTED_OPTIONS:
                console.report_row("changed", f"--{name} from {before!r} to {now!r} since the checkpoint")
        return progress

    def restore(self, stored: Checkpoint) -> Progress:
        """Restore all state but the position, which is returned.

        Raises:
            CheckpointError: the checkpoint does not fit this run.
            ConfigError: its position is not between two updates of this run.
        """
        self.task.load_extra_state(stored)  # first, to report other classes as such, not as a head of another shape
        copies = self._load_weights(stored)
        state = stored_optimizer_state(stored.tensors, "optimizer")
        load_optimizer_state(self.stepper.optimizer, state, self.stepper.params, copies)
        scaler = dict(stored.meta.get("scaler") or {})
        if scaler:
            self.stepper.scaler.load_state_dict({**scaler, "scale": np.asarray(scaler["scale"], np.float32)})
        self.epoch_meters.load(stored.meta["meters"], self.world)
        self.window.load(stored.meta.get("window", {}), self.world)
        if self.probe is not None and not self.probe.load(stored):
            logger.info("%s has no online probe; it starts from zero weights", stored.path)
        position = stored.meta["position"]
        ended = position.get("ended", False)
        done = 0 if ended else self._iterations(position["images"])
        return Progress(
            position["epoch"],
            done,
            stored.meta["step"],
            stored.meta.get("best", -math.inf),
            **stored.meta.get("bad_updates", {}),
            best_step=stored.meta.get("best_step", -1),
            ended=ended,
            skipped=position.get("skipped", 0),
            iteration=position.get("iteration", done),
        )

    def _load_weights(self, stored: Checkpoint) -> dict[str, np.ndarray]:
        """Restore the weights and return the float32 values of 16-bit parameters by name.

        Of a sharded parameter, this process's part is restored and returned.
        """
        shards, copies = shards_of(self.task.model), {}
        for name, tensor in self.task.model.state_dict().items():
            value, shard = stored.model.get(name), shards.get(name)
            part = None if value is None else my_part(value, shard, tensor.shape)
            if part is None:
                found = "lacks it" if value is None else f"has shape {list(value.shape)}"
                shape = list(tensor.shape) if shard is None else shard.whole_shape(tensor.shape)
                raise CheckpointError(
                    f"{stored.path} does not fit this run: the network's {name} has shape {shape}, the file {found}; "
                    "resume with the --model and sizes it was trained with"
                )
            if tensor.dtype in HALVES and name in self.stepper.params:
                copies[name] = part
            tensor.set_value(paddle.to_tensor(part).astype(tensor.dtype))
        if self.world.pipeline.size == 1:  # a stage of a pipeline has some of the blocks only
            names = self.task.model.state_dict()
            report = LoadReport(
                "plsc_mae", list(names), unexpected=[name for name in stored.model if name not in names]
            )
            require_complete(self.task.model, report, str(stored.path), idle=TEACHERS)
        return copies

    def _check_kind(self, stored: Checkpoint) -> None:
        """Raise CheckpointError if the checkpoint was saved with another method, phase or optimizer."""
        config, meta = self.config, stored.meta
        kinds = (
            ("method", meta.get("method"), config.method),
            ("phase", meta.get("phase", "pretrain"), config.phase),
            ("opt", meta["args"].get("opt"), config.opt),
        )
        for kind, found, wanted in kinds:
            if found != wanted:
                remedy = (
                    "resume with the --opt it was saved with"
                    if kind == "opt"
                    else "choose another --output_dir or checkpoint"
                )
                raise CheckpointError(
                    f"{stored.path} was saved with {kind} '{found}', this run has '{wanted}'; {remedy}"
                )

    def _iterations(self, images: int) -> int:
        """Convert a number of images read in an epoch to iterations; raise ConfigError unless an update ends there."""
        iterations, rest = divmod(images, self.images_per_iteration)
        if rest or not self.accumulation.is_start(iterations):
            raise ConfigError(
                f"the checkpoint was saved {counted(images, 'image')} into an epoch, which is not a multiple of the "
                f"{self.images_per_iteration * self.config.accum_iter} images of an update; resume with the "
                "--batch_size, --accum_iter and number of processes of the earlier run"
            )
        return iterations


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _entries(arrays: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Any]]:
    """Yield (name, array) for each key without a slash, (name, {accumulator: array}) for keys name/accumulator."""
    for name, entry in itertools.groupby(arrays, lambda item: item[0].partition("/")[0]):
        parts = {key.partition("/")[2]: array for key, array in entry}
        yield name, parts.get("", parts)
