"""What a checkpoint holds of a run, and how a run goes on from one."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.config import TrainingConfig
from plsc_mae.config.schema import plain_values
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.methods.base import Task
from plsc_mae.optim import load_optimizer_state, master_weights, optimizer_tensors, stored_optimizer_state
from plsc_mae.parallel.gather import Collection, Holdings
from plsc_mae.parallel.tensor import my_part, shard_of, shards_of
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.file import LazyDict
from plsc_mae.train.log.meters import Meters
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.train.step import LossScale
from plsc_mae.weights.reader import Checkpoint

logger = logging.getLogger(__name__)

LATEST, PREVIOUS, BEST = "latest", "previous", "best"
HALVES = (paddle.float16, paddle.bfloat16)
PLACES = ("resume", "auto_resume", "output_dir", "log_dir", "max_train_step")  # options that may change in silence


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the one that goes on, from 0.
        batches_done: iterations of it that are done.
        step: updates of the whole run.
        best: largest value of the metric that decides about checkpoint-best.pd.
        skipped_updates: left out because of numbers that were not finite.
        skipped_in_a_row: those just now.
        rollbacks: to an earlier checkpoint, for the same reason.
        rollbacks_in_a_row: those since the last checkpoint with new updates.
        best_step: updates when it was reached.
        ended: whether all updates of the epoch are done and what follows them is not.
        skipped: images of the epoch that were passed over, in all processes.
        iteration: `batches_done` as the run counted them that saved; another batch size counts otherwise.
    """

    epoch: int
    batches_done: int = 0
    step: int = 0
    best: float = -math.inf
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    rollbacks_in_a_row: int = 0
    best_step: int = -1
    ended: bool = False
    skipped: int = 0
    iteration: int = 0

    @property
    def bad_updates(self) -> dict[str, int]:
        """The counts of what was not finite."""
        names = ("skipped_updates", "skipped_in_a_row", "rollbacks", "rollbacks_in_a_row")
        return {name: getattr(self, name) for name in names}

    @property
    def place(self) -> tuple[int, ...]:
        """What tells positions apart."""
        return self.step, self.epoch, self.batches_done, self.ended


class RunState:
    """The parts of a run that have a state.

    Args:
        task: its model is saved.
        optimizer: updates `params`.
        params: the trainable parameters by name.
        scaler: of the loss.
        meters: running means of the epoch.
        window: running means since the last log line.
        probe: learns beside the network, if there is one.
        world: the processes of the run.
        config: its options.

    Attributes:
        collect_weights: makes the weights whole in every process; None where they are.
    """

    def __init__(
        self,
        task: Task,
        optimizer: paddle.optimizer.Optimizer,
        params: Mapping[str, Tensor],
        scaler: LossScale,
        meters: Meters,
        window: Meters,
        probe: OnlineProbe | None,
        world: World,
        config: TrainingConfig,
    ) -> None:
        self.task, self.optimizer, self.params, self.scaler = task, optimizer, params, scaler
        self.meters, self.window, self.probe, self.world, self.config = meters, window, probe, world, config
        self.collect_weights: Callable[[], Any] | None = None

    @property
    def images_per_iteration(self) -> int:
        """Images of all processes in one iteration."""
        return self.config.batch_size * self.world.size

    @contextlib.contextmanager
    def content(self, progress: Progress, tag: int | str) -> Iterator[dict[str, Any]]:
        """Give what the checkpoint `tag` is to hold while it is written; all processes must enter.

        In the main process tensors come one after the other, each when it is written, from the processes that have
        them; the others serve them and get nothing to write.
        """
        meters, window = self.meters.state(self.world), self.window.state(self.world)
        if self.collect_weights is not None:
            self.collect_weights()
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
        # The epoch that goes on, and the one that is done.
        epochs = {LATEST: progress.epoch, BEST: progress.epoch - 1}
        try:
            yield {
                **sections,  # in the order in which the others serve them
                **{name: value for name, value in extra.items() if name not in sections},
                **({} if self.probe is None else self.probe.extra_state()),
                "scaler": {name: np.asarray(value).tolist() for name, value in self.scaler.state_dict().items()},
                "epoch": epochs[tag] if isinstance(tag, str) else tag,
                "step": progress.step,
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
                "meters": meters,
                "window": window,
                "bad_updates": progress.bad_updates,
            }
        finally:
            for stream in streams.values():  # where writing has failed, the others are still to get rid of theirs
                collections.deque(stream, maxlen=0)

    def _weights(self) -> dict[str, Tensor]:
        """The network, with float32 copies of weights in 16 bits from the processes whose optimizer has them."""
        tensors, copies = dict(self.task.model.state_dict()), master_weights(self.optimizer)
        for name, param in self.params.items():
            if param.name in copies:
                tensors[name] = copies[param.name]
            elif param.dtype in HALVES and self.scattered:
                del tensors[name]
        return tensors

    def _collection(self, tensors: Mapping[str, Tensor]) -> Collection:
        shards = shards_of(self.task.model)
        return Collection(Holdings(tensors, shards), self.world, scattered=self.scattered)

    def _optimizer_collection(self) -> Collection:
        """Accumulators as name/accumulator; moments are shared as their parameter is."""
        tensors, shards = {}, {}
        for name, accumulators in optimizer_tensors(self.optimizer, self.params).items():
            shard = shard_of(self.params[name])
            for key, tensor in accumulators.items():
                tensors[f"{name}/{key}"] = tensor
                if shard is not None and tensor.shape == self.params[name].shape:
                    shards[f"{name}/{key}"] = shard
        return Collection(Holdings(tensors, shards), self.world, scattered=self.scattered)

    @property
    def scattered(self) -> bool:
        """Whether the main process lacks parts of the run's tensors."""
        return self.world.tensor.size * self.world.pipeline.size > 1 or (
            self.config.sharding_stage > 0 and self.world.size > 1
        )

    def resume(self, path: Path) -> Progress:
        """Go on from a checkpoint; tells where it stood and which options have changed since.

        Raises:
            CheckpointError: it is damaged or of another kind of run.
            ConfigError: its position is none of this run's.
        """
        stored = checkpoint_file.load(path)
        self._check_kind(stored)
        progress = self.restore(stored)
        logger.info("resumed from %s: epoch %d, step %d", path, progress.epoch, progress.step)
        current = plain_values(self.config)
        for name, before in stored.meta["args"].items():
            now = current.get(name, before)
            if now != before and name not in PLACES:
                logger.info("option changed since then: %s %s -> %s", name, before, now)
        return progress

    def restore(self, stored: Checkpoint) -> Progress:
        """Put weights, optimizer, loss scale and running means back; returns where the run stood."""
        copies = self._load_weights(stored)
        state = stored_optimizer_state(stored.tensors, "optimizer")
        load_optimizer_state(self.optimizer, state, self.params, copies)
        scaler = dict(stored.meta.get("scaler") or {})
        if scaler and self.scaler.is_enable():
            self.scaler.load_state_dict({**scaler, "scale": np.asarray(scaler["scale"], np.float32)})
        self.meters.load(stored.meta["meters"], self.world)
        self.window.load(stored.meta.get("window", {}), self.world)
        self.task.load_extra_state(stored)
        if self.probe is not None and not self.probe.load(stored):
            logger.info("%s has no online probe: it starts anew", stored.path)
        position = stored.meta["position"]
        ended = position.get("ended", False)
        done = 0 if ended else self._batches(position["images"])
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
        """Put the weights back; returns those of trained parameters that have 16 bits, as they are stored."""
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
            if tensor.dtype in HALVES and name in self.params:
                copies[name] = part
            tensor.set_value(paddle.to_tensor(part).astype(tensor.dtype))
        return copies

    def _check_kind(self, stored: Checkpoint) -> None:
        """Refuse a checkpoint of another kind of run."""
        config, meta = self.config, stored.meta
        kinds = (
            ("method", meta.get("method"), config.method),
            ("phase", meta.get("phase", "pretrain"), config.phase),
            ("opt", meta["args"].get("opt"), config.opt),
        )
        for kind, found, wanted in kinds:
            if found != wanted:
                remedy = "; resume with the --opt it was saved with" if kind == "opt" else ""
                raise CheckpointError(f"{stored.path} is of {kind} '{found}', this run is '{wanted}'{remedy}")

    def _batches(self, images: int) -> int:
        """Iterations of this epoch that are done, which must end an accumulation group."""
        batch = self.images_per_iteration
        if images % (batch * self.config.accum_iter):
            raise ConfigError(
                f"the checkpoint was saved {images} images into an epoch, which is no whole number of updates of "
                f"{batch * self.config.accum_iter} images; resume with the --batch_size, --accum_iter and processes of "
                "before"
            )
        return images // batch


def checkpoint_to_resume(config: TrainingConfig) -> Path | None:
    """Which checkpoint a run goes on from, if any; warns of those that it passes by.

    Raises:
        CheckpointError: there are checkpoints to go on from and all of them are damaged.
    """
    if config.resume:
        return Path(config.resume)
    files = checkpoint_file.all_of(config.output_dir, config.exp_name)
    if config.auto_resume:
        newest = checkpoint_file.find_newest(config.output_dir, config.exp_name)
        if files and newest is None:
            raise CheckpointError(
                f"none of the {len(files)} checkpoints in {config.output_dir} can be used, see the warnings; bring one "
                "back, or start anew in another --output_dir"
            )
        return newest
    if files:
        logger.warning(
            "%s holds checkpoints of an earlier run and this one starts anew beside them; to go on with that run "
            "stop this and pass --auto_resume, else choose another --output_dir",
            config.output_dir,
        )
    return None


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _entries(arrays: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Any]]:
    """Entries of a section: arrays by name, or where keys are name/accumulator, dictionaries of arrays by name."""
    for name, entry in itertools.groupby(arrays, lambda item: item[0].partition("/")[0]):
        parts = {key.partition("/")[2]: array for key, array in entry}
        yield name, parts.get("", parts)
