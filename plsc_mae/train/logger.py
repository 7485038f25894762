"""What a run tells: console lines, a bar on a terminal, train.jsonl, log.txt, VisualDL."""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from plsc_mae.errors import CheckpointError
from plsc_mae.methods.base import Pictures

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
        CheckpointError: the folder of VisualDL records cannot be written.
    """

    def __init__(self, output_dir: str, log_dir: str, *, active: bool) -> None:
        self.active = active
        self._steps, self._epochs = Path(output_dir) / "train.jsonl", Path(output_dir) / "log.txt"
        self._visualdl = _visualdl_writer(log_dir) if active else None
        self._bar: Any = None

    def start(self, epoch: int, iteration: int) -> None:
        """Begin after an iteration of an epoch; records from beyond, left by a killed run, are dropped."""
        if self.active:
            _keep_lines(self._steps, lambda record: (record["epoch"], record["iteration"]) <= (epoch, iteration))
            _keep_lines(self._epochs, lambda record: record["epoch"] < epoch)

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
        _append(self._steps, record)
        if self._visualdl is not None:
            for name, value in record.items():
                if name not in ("epoch", "iteration", "step"):
                    self._visualdl.add_scalar(f"train/{name}", value, record["step"])

    def epoch(self, record: dict[str, Any], observed: Mapping[str, float]) -> None:
        """Tell of a finished epoch and of what was observed after it: a line of log.txt, VisualDL scalars."""
        if not self.active:
            return
        _append(self._epochs, {**record, **observed})
        if observed:
            numbers = " ".join(f"{name} {_number(value)}" for name, value in observed.items())
            tqdm.write(f"epoch {record['epoch']} done: {numbers}", file=sys.stdout)
            sys.stdout.flush()
        if self._visualdl is not None:
            trained = {f"epoch/{name[6:]}": value for name, value in record.items() if name.startswith("train_")}
            for name, value in (trained | {f"perf/{name}": value for name, value in observed.items()}).items():
                self._visualdl.add_scalar(name, value, record["epoch"])

    def pictures(self, pictures: Pictures, epoch: int) -> None:
        """Show pictures in VisualDL, one panel per image: every label's picture side by side."""
        if self._visualdl is None or not pictures:
            return
        rows = np.concatenate(list(pictures.values()), axis=2)  # [B, H, labels*W, 3]
        for i, row in enumerate(rows):
            self._visualdl.add_image(f"{' | '.join(pictures)}/{i}", row, epoch)

    def close(self) -> None:
        """Flush and end."""
        self.end_epoch()
        if self._visualdl is not None:
            self._visualdl.close()


_FIXED = (
    *("epoch", "iteration", "step", "lr", "min_lr", "weight_decay", "loss_scale", "grad_norm"),
    *("images_per_second", "data_share", "memory_gib", "time"),
)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def _append(path: Path, record: dict[str, Any]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write the log {path}: {error.strerror}; checkpoints are untouched") from None


def _keep_lines(path: Path, keep: Any) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a killed run may be cut off
            continue
        if keep(record):
            kept.append(line)
    replace_text(path, "".join(line + "\n" for line in kept))


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is always either the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _visualdl_writer(log_dir: str) -> Any:
    try:
        from visualdl import LogWriter
    except ImportError:
        logger.warning("visualdl is not installed: no VisualDL records, train.jsonl has the same numbers")
        return None
    try:
        # One name for all starts of a run: opening it again appends.
        return LogWriter(logdir=log_dir, file_name="vdlrecords.run.log")
    except OSError as error:
        raise CheckpointError(
            f"cannot write VisualDL records to {log_dir}: {error.strerror}; choose another --log_dir"
        ) from None
