"""Output of a run: console lines, progress bar, train.jsonl, log.txt and VisualDL records."""

from __future__ import annotations

import logging
import resource
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from tqdm import tqdm

from plsc_mae import console
from plsc_mae.errors import CheckpointError
from plsc_mae.methods.base import Pictures
from plsc_mae.train.log.append_file import JsonLines, VisualDLRecords

logger = logging.getLogger(__name__)

# Fields of a record that the console line prints at a fixed place; all others are metrics of the method.
POSITION_FIELDS = ("epoch", "iteration", "step")
SETTING_FIELDS = ("lr", "min_lr", "weight_decay", "loss_scale", "grad_norm")
MEASURED_FIELDS = ("images_per_second", "data_share", "memory_gib", "time")
FIXED_FIELDS = POSITION_FIELDS + SETTING_FIELDS + MEASURED_FIELDS
RUN = "run"  # field of every record with the id of the run


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 3:12:40."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def peak_memory_gib(is_gpu: bool) -> float:
    """Return the peak memory in GiB, of the device on GPU and of this process on CPU."""
    if is_gpu:
        return paddle.device.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class LogFiles(NamedTuple):
    """Open log files of a run; `visualdl` is None if the package cannot be imported."""

    steps: JsonLines
    epochs: JsonLines
    visualdl: VisualDLRecords | None


class RunLogger:
    """Logger of a run; it writes in the main process and does nothing in the others.

    Args:
        output_dir: folder of train.jsonl and log.txt.
        log_dir: folder of the VisualDL records.
        active: whether this is the main process.

    Attributes:
        run: id of the run, which every record has.
        is_new: True until the first line of a print interval is printed.
    """

    def __init__(self, output_dir: str, log_dir: str, *, active: bool) -> None:
        self.output_dir, self.log_dir, self.active = Path(output_dir), Path(log_dir), active
        self.run, self.is_new = "", True
        self._files: LogFiles | None = None
        self._bar: Any = None

    def start(self, step: int, epoch: int, iteration: int) -> None:
        """Open the files and remove records later than the start position, which a killed run has left.

        Args:
            step: finished updates.
            epoch: current epoch.
            iteration: finished iterations of the epoch, as counted by the run that wrote the records.

        Raises:
            CheckpointError: a log file cannot be written.
        """
        if not self.active:
            return
        steps, epochs = JsonLines(self.output_dir / "train.jsonl"), JsonLines(self.output_dir / "log.txt")
        self._files = files = LogFiles(steps, epochs, _open_visualdl(self.log_dir))

        def position(record: dict[str, Any]) -> tuple[int, ...]:
            return tuple(record.get(name, 0) for name in ("step", "epoch", "iteration"))

        try:
            lines = files.steps.keep(lambda record: position(record) <= (step, epoch, iteration))
            files.epochs.keep(lambda record: record.get("epoch", 0) < epoch and record.get("step", 0) <= step)
            if files.visualdl is not None:
                # VisualDL records have no iteration: of the last step, keep one per tag for each line of train.jsonl.
                files.visualdl.keep(_UpTo(step, epoch, sum(line.get("step") == step for line in lines)))
        except OSError as error:
            raise CheckpointError(
                f"cannot shorten the log {error.filename}: {error.strerror}; make it writable or choose another "
                "--output_dir"
            ) from None

    @property
    def pending(self) -> bool:
        """True if lines of train.jsonl or log.txt are waiting in memory for the disk."""
        return self._files is not None and bool(self._files.steps.pending or self._files.epochs.pending)

    def sync(self) -> None:
        """Flush all records to the disk, so that a checkpoint is never newer than the logs.

        Raises:
            CheckpointError: train.jsonl or log.txt cannot be written.
        """
        if self._files is None:
            return
        if self._files.visualdl is not None:
            self._files.visualdl.sync()
        for log in (self._files.steps, self._files.epochs):
            if not log.sync():
                raise CheckpointError(f"no checkpoint is saved while the log {log.path} cannot be written")

    def start_epoch(self, epoch: int, total: int, done: int) -> None:
        """Show the progress bar of an epoch where there can be one: `done` of `total` iterations."""
        if self.active and console.shows_bars():
            width = shutil.get_terminal_size().columns - 3  # leaves room for an echoed ^C, so that it can be erased
            self._bar = tqdm(total=total, initial=done, desc=f"epoch {epoch}", unit="it", leave=False, ncols=width)

    def tick(self) -> None:
        """Advance the progress bar by one iteration."""
        if self._bar is not None:
            self._bar.update()

    def end_epoch(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def line(self, record: dict[str, Any], *, total: int, eta: float) -> None:
        """Write the record of a print interval to the console, train.jsonl and VisualDL.

        Args:
            record: values of FIXED_FIELDS and the method's metrics, by name.
            total: iterations per epoch.
            eta: estimated seconds to the end of the run.
        """
        self.print_line(record, total=total, eta=eta)
        if self._files is None:
            return
        self._files.steps.add(self._identified(record))
        if self._files.visualdl is not None:
            values = {f"train/{name}": value for name, value in record.items() if name not in POSITION_FIELDS}
            self._files.visualdl.add_scalars(values, record["step"])

    def print_line(self, record: dict[str, Any], *, total: int, eta: float) -> None:
        """Write the record of a print interval to the console only; arguments as in `line`."""
        self.is_new = False
        if self.active:
            console.write_line(format_line(record, total=total, eta=eta, width=console.columns()))

    def _identified(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, RUN: self.run} if self.run else record

    def epoch(self, record: dict[str, Any], observed: Mapping[str, float]) -> None:
        """Write the record of an epoch and the observers' metrics to log.txt and VisualDL; print the metrics."""
        if self._files is None:
            return
        self._files.epochs.add(self._identified({**record, **observed}))
        if observed:
            numbers = " ".join(f"{name} {_number(value)}" for name, value in observed.items())
            console.write_line(f"epoch {record['epoch']} done: {numbers}")
        if self._files.visualdl is not None:
            trained = {f"epoch/{name[6:]}": value for name, value in record.items() if name.startswith("train_")}
            seen = {f"perf/{name}": value for name, value in observed.items()}
            self._files.visualdl.add_scalars(trained | seen, record["epoch"])

    def pictures(self, pictures: Pictures, epoch: int) -> None:
        """Write one VisualDL image per input image, with its pictures of all labels side by side."""
        if self._files is None or self._files.visualdl is None or not pictures:
            return
        rows = np.concatenate(list(pictures.values()), axis=2)  # [B, H, labels * W, 3]
        self._files.visualdl.add_images({f"{' | '.join(pictures)}/{i}": row for i, row in enumerate(rows)}, epoch)


def format_line(record: Mapping[str, Any], *, total: int, eta: float, width: int | None) -> str:
    """Format the record of a print interval as one console line.

    Args:
        record: values of FIXED_FIELDS and the method's metrics, by name.
        total: iterations per epoch.
        eta: estimated seconds to the end of the run.
        width: columns of the terminal, into which the most important values are fitted; None writes all values.
    """
    position = f"epoch {record['epoch']} [{record['iteration']:>{len(str(total))}}/{total}]"
    metrics = {name: f"{name} {_number(record[name])}" for name in record if name not in FIXED_FIELDS}
    parts = metrics | {
        "lr": f"lr {record['lr']:.2e}",
        "min_lr": f"min_lr {record['min_lr']:.2e}",
        "weight_decay": f"wd {record['weight_decay']:.3g}",
        "loss_scale": f"scale {record['loss_scale']:g}",
        "grad_norm": f"grad {_number(record['grad_norm'])}",
        "images_per_second": f"img/s {record['images_per_second']:.1f}",
        "data_share": f"data {record['data_share']:.0%}",
        "memory_gib": f"mem {record['memory_gib']:.1f}G",
        "eta": f"eta {duration(eta)}",
    }
    if width is None:
        return " ".join([position, *parts.values()])
    chosen: set[str] = set()
    left = width - 1 - len(position)
    for name in ("loss", "eta", "images_per_second", "lr", *metrics, "grad_norm", "data_share", "memory_gib"):
        if name in parts and name not in chosen and len(parts[name]) < left:
            chosen.add(name)
            left -= len(parts[name]) + 1
    return " ".join([position, *(text for name, text in parts.items() if name in chosen)])


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


class _UpTo:
    """Filter for VisualDL records up to a position; steps of train/* tags are updates, those of all others epochs.

    Args:
        step: finished updates.
        epoch: current epoch.
        lines: number of records to keep per train/* tag at `step` itself.
    """

    def __init__(self, step: int, epoch: int, lines: int) -> None:
        self.step, self.epoch, self.lines = step, epoch if step else 0, lines
        self._seen: Counter[str] = Counter()

    def __call__(self, tag: str, step: int) -> bool:
        """Return whether to keep the next record of `tag`, which is at `step`."""
        if not tag.startswith("train/"):
            return step < self.epoch
        if step == self.step:
            self._seen[tag] += 1
            return self._seen[tag] <= self.lines
        return step < self.step


def _open_visualdl(log_dir: Path) -> VisualDLRecords | None:
    try:
        return VisualDLRecords(log_dir)
    except ImportError as error:
        logger.warning(
            "no VisualDL records are written, because visualdl cannot be imported (%s): pip install visualdl; "
            "train.jsonl has the numbers",
            error,
        )
        return None
