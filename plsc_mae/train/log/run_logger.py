"""Output of a run: console lines, progress bar, train.jsonl, log.txt, and records for boards such as VisualDL."""

from __future__ import annotations

import logging
import resource
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
from tqdm import tqdm

from plsc_mae import console
from plsc_mae.errors import CheckpointError
from plsc_mae.train.log.append_file import JsonLines, VisualDLRecords
from plsc_mae.train.log.boards import Board, RunOptions, TensorBoardEvents, WandbRun, require_packages
from plsc_mae.train.log.tags import FIXED_FIELDS, SETTING_FIELDS, KeptRecords, epoch_tags, line_tags

logger = logging.getLogger(__name__)

RUN = "run"  # name of the field with the id of the run, in every record
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"
SHORT_RUN = 60.0  # seconds to the end of a run below which its end is not announced


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 3:12:40."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def peak_memory_gib(is_gpu: bool) -> float:
    """Return the peak memory in GiB: of this process's tensors on the GPU or, on CPU, of the whole process."""
    if is_gpu:
        return paddle.device.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class LogFiles(NamedTuple):
    """Open log files of a run, and the boards that show it."""

    steps: JsonLines  # train.jsonl
    epochs: JsonLines  # log.txt
    boards: Sequence[Board]


class RunLogger:
    """Logger of a run; it writes in the main process and does nothing in the others.

    Args:
        output_dir: folder of train.jsonl and log.txt.
        log_dir: folder of the records for boards.
        active: whether this is the main process.
        loggers: names of the boards, see --logger.
        described: name and options of the run, for boards.
        left_out: returns the names of the values that console lines leave out, see `Task.left_out`.

    Attributes:
        run: id of the run, which every record has.
        is_new: True until the first record of this start is printed.
        epoch_of: number of each logged epoch by the number of updates at its end.

    Raises:
        ConfigError: the package of a board cannot be imported; without visualdl, `start` only warns.
    """

    def __init__(
        self,
        output_dir: str,
        log_dir: str,
        *,
        active: bool,
        loggers: Sequence[str] = ("visualdl",),
        described: RunOptions | None = None,
        left_out: Callable[[Mapping[str, float]], Collection[str]] = lambda _: (),
    ) -> None:
        require_packages(loggers)
        self.output_dir, self.log_dir, self.active = Path(output_dir), Path(log_dir), active
        self.loggers, self.described = loggers, described or RunOptions()
        self.left_out = left_out
        self.run, self.is_new = "", True
        self._files: LogFiles | None = None
        self._bar: Any = None
        self._bar_text = ""  # of the last print interval; the bar of the next epoch starts with it
        self._announced = False
        self._epoch_start: tuple[float, float] | None = None  # time and fraction of the epoch done before
        self.epoch_of: dict[int, int] = {}

    def start(self, step: int, epoch: int, iteration: int) -> None:
        """Open files and boards; in train.jsonl, log.txt and VisualDL, remove records after the start position.

        Args:
            step: finished updates.
            epoch: current epoch.
            iteration: finished iterations of the epoch, as counted by the run that wrote the records.

        Raises:
            CheckpointError: a log file cannot be read or written.
        """
        if not self.active:
            return
        steps, epochs = JsonLines(self.output_dir / "train.jsonl"), JsonLines(self.output_dir / "log.txt")
        visualdl = self._open_visualdl() if "visualdl" in self.loggers else None

        def position(record: dict[str, Any]) -> tuple[int, ...]:
            return tuple(record.get(name, 0) for name in ("step", "epoch", "iteration"))

        try:
            lines = steps.keep(lambda record: position(record) <= (step, epoch, iteration))
            ended = epochs.keep(lambda record: record.get("epoch", 0) < epoch and record.get("step", 0) <= step)
            if visualdl is not None:
                # VisualDL records have no iteration. So at `step`, keep one per curve for each line of train.jsonl.
                last = sum(line.get("step") == step for line in lines)
                visualdl.keep(KeptRecords(step, epoch, last, [line.get("step", 0) for line in ended]))
        except OSError as error:
            raise CheckpointError(
                f"cannot shorten the log {error.filename}: {error.strerror}; make it writable or choose another "
                "--output_dir"
            ) from None
        self.epoch_of = {line["step"]: line["epoch"] for line in ended if {"step", "epoch"} <= line.keys()}
        boards: list[Board] = [] if visualdl is None else [visualdl]
        if "tensorboard" in self.loggers:
            boards.append(TensorBoardEvents(self.log_dir, step))
        if "wandb" in self.loggers:
            boards.append(WandbRun(self.log_dir, self.run, self.described))
        for board in boards:
            board.add_options(self.described.tables, step)
        self._files = LogFiles(steps, epochs, boards)

    def _open_visualdl(self) -> VisualDLRecords | None:
        name = " ".join(filter(None, (self.described.name, self.run[:4])))  # VisualDL mixes up runs of the same name
        try:
            return VisualDLRecords(self.log_dir, name)
        except ImportError as error:
            logger.warning(
                "no VisualDL records are written, because visualdl cannot be imported (%s): pip install visualdl; "
                "train.jsonl has the numbers",
                error,
            )
            return None

    def close(self) -> None:
        """Close the progress bar and the boards."""
        self.end_epoch()
        if self._files is not None:
            for board in self._files.boards:
                board.close()

    @property
    def pending(self) -> bool:
        """True if lines of train.jsonl or log.txt are waiting in memory for the disk."""
        return self._files is not None and bool(self._files.steps.pending or self._files.epochs.pending)

    def sync(self) -> None:
        """Flush train.jsonl, log.txt and the boards, so that a checkpoint is never newer than the logs.

        Raises:
            CheckpointError: train.jsonl or log.txt cannot be written.
        """
        if self._files is None:
            return
        for board in self._files.boards:
            board.sync()
        for log in (self._files.steps, self._files.epochs):
            if not log.sync():
                raise CheckpointError(f"no checkpoint is saved while the log {log.path} cannot be written")

    def start_epoch(self, epoch: int, total: int, done: int) -> None:
        """Start to time an epoch, of which `done` of `total` iterations are done, and show its progress bar, if any."""
        self._epoch_start = time.perf_counter(), done / total
        if self.active and console.shows_bars():
            width = shutil.get_terminal_size().columns - 3  # leaves room for an echoed ^C, so that it can be erased
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=f"epoch {epoch}",
                leave=False,
                ncols=width,
                bar_format=BAR,
                postfix=self._bar_text,
            )

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
        """Write the record of a print interval to the console, train.jsonl and the boards.

        Args:
            record: values of FIXED_FIELDS and the method's metrics, by name.
            total: iterations per epoch.
            eta: estimated seconds to the end of the run.
        """
        self.print_line(record, total=total, eta=eta)
        if self._files is None:
            return
        self._announce_end(eta, record["images_per_second"])
        self._files.steps.add(self._identified(record))
        for board in self._files.boards:
            board.add_scalars(line_tags(record), record["step"])

    def print_line(self, record: dict[str, Any], *, total: int, eta: float) -> None:
        """Show the record of a print interval beside the progress bar or as a line, or both; arguments as in `line`."""
        self.is_new = False
        if self._bar is not None:
            self._bar_text = _postfix(record, eta)
            self._bar.set_postfix_str(self._bar_text)
        if self.active and (self._bar is None or not console.is_watched()):
            decay = self.described.hyper_parameters.get("weight_decay")
            left_out = self.left_out(record)
            shown = {name: value for name, value in record.items() if name not in left_out}
            text = format_line(shown, total=total, eta=eta, width=console.columns(), weight_decay=decay)
            ends_epoch = record["iteration"] == total
            console.report(None if left_out and ends_epoch else text, {"event": "update", **record, "eta": eta})

    def _announce_end(self, eta: float, images_per_second: float) -> None:
        """Print the expected end of a run at the first line of a start, unless the end is near."""
        if not self._announced and eta > SHORT_RUN:
            clock = time.strftime("%a %H:%M", time.localtime(time.time() + eta))
            console.report(
                f"expected end: {clock}, in {duration(eta)} at {images_per_second:.1f} images/s; evaluation and "
                "checkpoints are not counted"
            )
        self._announced = True

    def _identified(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, RUN: self.run} if self.run else record

    def epoch(self, record: dict[str, Any], observed: Mapping[str, float], constant: Collection[str] = ()) -> None:
        """Write the record of an epoch and the observers' metrics to log.txt, the boards and the console.

        The boards and the line on the console leave out the metrics that `constant` names.
        """
        if self._files is None:
            return
        identified = self._identified({**record, **observed})
        self._files.epochs.add(identified)
        self.epoch_of[record["step"]] = record["epoch"]
        times = self._epoch_times(record["epoch"] + 1)
        shown = {name: value for name, value in observed.items() if name not in constant}
        left_out = self.left_out(record | shown)
        lined, tested = ({k: v for k, v in part.items() if k not in left_out} for part in (record, shown))
        text = format_epoch(lined, tested, times, epochs=self.described.epochs, width=console.columns())
        console.report(text, {"event": "epoch", **identified, **times})
        values = epoch_tags(record, shown)
        for board in self._files.boards:
            board.add_scalars(values, record["step"])
            if record["epoch"] + 1 >= self.described.epochs:
                board.add_hyper_parameters(self.described.hyper_parameters, list(values), record["step"])

    def _epoch_times(self, done: int) -> dict[str, float]:
        """Return the seconds of the epoch with its evaluation, and those to the end of the run after `done` epochs.

        The result is {} if a run resumes after the last iteration of an epoch, because no time was measured then.
        """
        if self._epoch_start is None:
            return {}
        started, before = self._epoch_start
        seconds, self._epoch_start = time.perf_counter() - started, None
        return {"time": seconds, "eta": seconds / (1 - before) * (self.described.epochs - done)}

    def pictures(self, pictures: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
        """Write pictures, uint8 [H, W, 3] by tag, to the boards; `step` is the number of finished updates."""
        if self._files is not None and pictures:
            for board in self._files.boards:
                board.add_images(pictures, step)

    def histograms(self, values: Mapping[str, npt.NDArray[np.float32]], step: int) -> None:
        """Write the histograms of arrays by tag to the boards; `step` is the number of finished updates."""
        if self._files is not None:
            for board in self._files.boards:
                board.add_histograms(values, step)


def format_line(
    record: Mapping[str, Any], *, total: int, eta: float, width: int | None, weight_decay: Any = None
) -> str:
    """Format the record of a print interval as one console line, without settings that say nothing in this run.

    Args:
        record: values of FIXED_FIELDS and the method's metrics, by name.
        total: iterations per epoch.
        eta: estimated seconds to the end of the run.
        width: columns of the terminal, into which the most important values are fitted; None writes all values.
        weight_decay: the option; the line has the weight decay only if it differs from this.
    """
    position = f"epoch {record['epoch']} [{record['iteration']:>{len(str(total))}}/{total}]"
    metrics = {name: f"{name} {_number(record[name])}" for name in record if name not in FIXED_FIELDS}
    settings = {"lr": f"lr {record['lr']:.2e}"}
    if record["min_lr"] != record["lr"]:
        settings["min_lr"] = f"min_lr {record['min_lr']:.2e}"
    if record["weight_decay"] != weight_decay:
        settings["weight_decay"] = f"wd {record['weight_decay']:.3g}"
    if record["loss_scale"] != 1:
        settings["loss_scale"] = f"scale {record['loss_scale']:g}"
    parts = (
        metrics
        | settings
        | {
            "grad_norm": f"grad {_number(record['grad_norm'])}",
            "images_per_second": f"img/s {record['images_per_second']:.1f}",
            "data_share": f"data {record['data_share']:.0%}",
            "memory_gib": f"mem {record['memory_gib']:.1f}G",
            "eta": f"eta {duration(eta)}",
        }
    )
    order = ("loss", "eta", "images_per_second", "lr", *metrics, "grad_norm", "data_share", "memory_gib")
    return _fit(position, parts, order, width)


def format_epoch(
    record: Mapping[str, Any],
    observed: Mapping[str, float],
    times: Mapping[str, float],
    *,
    epochs: int,
    width: int | None,
) -> str:
    """Format the record of an epoch as one console line.

    Args:
        record: values of the epoch; names of training's values start with train_.
        observed: the observers' metrics by name.
        times: seconds of the epoch as "time" and to the end of the run as "eta"; may be empty.
        epochs: epochs of the whole run.
        width: columns of the terminal, into which the most important values are fitted; None writes all values.
    """
    means = {name.removeprefix("train_"): value for name, value in record.items() if name.startswith("train_")}
    metrics = {name: value for name, value in means.items() if name not in SETTING_FIELDS}
    parts = {name: f"{name} {_number(value)}" for name, value in (metrics | dict(observed)).items()}
    parts |= {"lr": f"lr {means['lr']:.2e}"} if "lr" in means else {}
    parts |= {name: f"{name} {duration(seconds)}" for name, seconds in times.items()}
    position = f"epoch {record['epoch']} done ({record['epoch'] + 1}/{epochs}):"
    return _fit(position, parts, ("loss", *observed, "eta", "time", *parts), width)


def _fit(position: str, parts: Mapping[str, str], order: Sequence[str], width: int | None) -> str:
    """Join a position and values in their order.

    If not all of them fit into `width` columns, those that come first in `order` take precedence. None keeps all.
    """
    if width is None:
        return " ".join([position, *parts.values()])
    chosen: set[str] = set()
    left = width - 1 - len(position)
    for name in order:
        if name in parts and name not in chosen and len(parts[name]) < left:
            chosen.add(name)
            left -= len(parts[name]) + 1
    return " ".join([position, *(text for name, text in parts.items() if name in chosen)])


def _postfix(record: Mapping[str, Any], eta: float) -> str:
    """Format a print interval for the end of the progress bar; `eta` is in seconds."""
    loss = [f"loss {_number(record['loss'])}"] if "loss" in record else []
    return ", ".join([*loss, f"{record['images_per_second']:.1f} img/s", f"run ends in {duration(eta)}"])


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
