"""What a run tells: console lines, a bar on a terminal, train.jsonl, log.txt, VisualDL."""

from __future__ import annotations

import logging
import resource
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from plsc_mae.errors import CheckpointError
from plsc_mae.methods.base import Pictures
from plsc_mae.train.log.append_file import JsonLines, VisualDLRecords

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 3:12:40."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def peak_memory_gib(is_gpu: bool) -> float:
    """Peak memory: of the device on GPU, of this process on CPU."""
    if is_gpu:
        return paddle.device.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class RunLogger:
    """Writes the records of a run; on other processes than the main one it writes nothing.

    Args:
        output_dir: folder of train.jsonl and log.txt.
        log_dir: folder of VisualDL records.
        active: whether this is the main process.

    Raises:
        CheckpointError: a log cannot be written.
    """

    def __init__(self, output_dir: str, log_dir: str, *, active: bool) -> None:
        self.active = active
        self._bar: Any = None
        self._visualdl: VisualDLRecords | None = None
        if active:
            self._steps = JsonLines(Path(output_dir) / "train.jsonl")
            self._epochs = JsonLines(Path(output_dir) / "log.txt")
            self._visualdl = _visualdl_records(log_dir)

    def start(self, step: int, epoch: int, iteration: int) -> None:
        """Begin after an update and an iteration of an epoch; records from beyond, left by a stopped run, are dropped.

        Args:
            step: updates done.
            epoch: the one that goes on.
            iteration: of it, as the lines count them.

        Raises:
            CheckpointError: a log cannot be written.
        """
        if not self.active:
            return

        def place(record: dict[str, Any]) -> tuple[int, ...]:
            return tuple(record.get(name, 0) for name in ("step", "epoch", "iteration"))

        try:
            lines = self._steps.keep(lambda record: place(record) <= (step, epoch, iteration))
            self._epochs.keep(lambda record: record.get("epoch", 0) < epoch and record.get("step", 0) <= step)
            if self._visualdl is not None:
                # VisualDL does not know iterations: as many records of the last step stay as there are lines.
                self._visualdl.keep(_UpTo(step, epoch, sum(line.get("step") == step for line in lines)))
        except OSError as error:
            raise CheckpointError(f"cannot shorten the log {error.filename}: {error.strerror}") from None

    @property
    def pending(self) -> bool:
        """Whether lines wait in memory for a disk that takes them; VisualDL's do not count."""
        return self.active and bool(self._steps.pending or self._epochs.pending)

    def sync(self) -> None:
        """Flush all records to the disk, so that none from before a checkpoint can be lost.

        Raises:
            CheckpointError: train.jsonl or log.txt cannot be written.
        """
        if self._visualdl is not None:
            self._visualdl.sync()
        for log in (self._steps, self._epochs):
            if not log.sync():
                raise CheckpointError(f"no checkpoint is saved while the log {log.path} cannot be written")

    def start_epoch(self, epoch: int, total: int, done: int) -> None:
        """Open the bar of an epoch, on a terminal only."""
        if self.active and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=f"epoch {epoch}", unit="it", leave=False)

    def tick(self) -> None:
        """Move the bar by one iteration."""
        if self._bar is not None:
            self._bar.update()

    def end_epoch(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def line(self, record: dict[str, Any], *, total: int, eta: float) -> None:
        """Tell of one print interval: a console line, a line of train.jsonl, VisualDL scalars."""
        if not self.active:
            return
        width = len(str(total))
        fields = [f"{name} {_number(record[name])}" for name in record if name not in _FIXED]
        text = (
            f"epoch {record['epoch']} [{record['iteration']:>{width}}/{total}] {' '.join(fields)} "
            f"lr {record['lr']:.2e} min_lr {record['min_lr']:.2e} wd {record['weight_decay']:.3g} "
            f"scale {record['loss_scale']:g} grad {_number(record['grad_norm'])} "
            f"img/s {record['images_per_second']:.1f} data {record['data_share']:.0%} "
            f"mem {record['memory_gib']:.1f}G eta {duration(eta)}"
        )
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        self._steps.add(record)
        if self._visualdl is not None:
            values = {f"train/{name}": x for name, x in record.items() if name not in ("epoch", "iteration", "step")}
            self._visualdl.add_scalars(values, record["step"])

    def epoch(self, record: dict[str, Any], observed: Mapping[str, float]) -> None:
        """Tell of a finished epoch and of what was observed after it: a line of log.txt, VisualDL scalars."""
        if not self.active:
            return
        self._epochs.add({**record, **observed})
        if observed:
            numbers = " ".join(f"{name} {_number(value)}" for name, value in observed.items())
            tqdm.write(f"epoch {record['epoch']} done: {numbers}", file=sys.stdout)
            sys.stdout.flush()
        if self._visualdl is not None:
            trained = {f"epoch/{name[6:]}": value for name, value in record.items() if name.startswith("train_")}
            seen = {f"perf/{name}": value for name, value in observed.items()}
            self._visualdl.add_scalars(trained | seen, record["epoch"])

    def pictures(self, pictures: Pictures, epoch: int) -> None:
        """Show pictures in VisualDL, one panel per image: every label's picture side by side."""
        if self._visualdl is None or not pictures:
            return
        rows = np.concatenate(list(pictures.values()), axis=2)  # [B, H, labels*W, 3]
        self._visualdl.add_images({f"{' | '.join(pictures)}/{i}": row for i, row in enumerate(rows)}, epoch)


_FIXED = (
    *("epoch", "iteration", "step", "lr", "min_lr", "weight_decay", "loss_scale", "grad_norm"),
    *("images_per_second", "data_share", "memory_gib", "time"),
)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


class _UpTo:
    """Tells VisualDL records up to a position from those beyond it: train/* has updates for its steps, the rest epochs.

    Args:
        step: updates done.
        epoch: the one that goes on.
        lines: how many lines there are with that step.
    """

    def __init__(self, step: int, epoch: int, lines: int) -> None:
        self.step, self.epoch, self.lines = step, epoch if step else 0, lines
        self._seen: Counter[str] = Counter()

    def __call__(self, tag: str, step: int) -> bool:
        """Whether the next record of a tag is to stay."""
        if not tag.startswith("train/"):
            return step < self.epoch
        if step == self.step:
            self._seen[tag] += 1
            return self._seen[tag] <= self.lines
        return step < self.step


def _visualdl_records(log_dir: str) -> VisualDLRecords | None:
    try:
        return VisualDLRecords(Path(log_dir))
    except ImportError:
        logger.warning("visualdl is not installed: no VisualDL records, train.jsonl has the same numbers")
        return None
