"""Content of a run's output folder, as far as the run has written it; earlier versions wrote less."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from plsc_mae.errors import DataError
from plsc_mae.train.checkpoint.folder import CONFIG, HISTORY, TRIVIAL_LOSSES
from plsc_mae.train.checkpoint.run_record import read_record
from plsc_mae.train.class_results import ClassResults, read_class_results
from plsc_mae.train.log.append_file import VISUALDL_FILE

_MATRIX_SOURCES = {  # commands that write the confusion matrix of a classifier, by the phase of its training
    "finetune": "plsc-mae finetune --eval --resume FILE --save_path DIR",
    "linprobe": "plsc-mae linprobe --eval --resume FILE --save_path DIR",
}
Records = Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """A picture that the run has written."""

    step: int  # number of finished updates; in records of earlier versions, of epochs
    encoded: bytes  # content of the image file

    @property
    def image(self) -> Image.Image:
        """The decoded picture."""
        return Image.open(io.BytesIO(self.encoded)).convert("RGB")


@dataclass(frozen=True)
class RunFolder:
    """A run, read from its output folder."""

    path: Path
    run: str  # id of the run; "" if it has none
    options: Mapping[str, Any]  # options by name; empty without a readable config file
    intervals: Records  # records of train.jsonl
    epochs: Records  # records of log.txt, without top-5 accuracies that are 100 in all of them
    history: Records  # records of history.jsonl
    trivial: Mapping[str, Any]  # content of trivial_losses.json; empty if the file is missing or damaged
    pictures: Mapping[str, Sequence[Picture]]  # pictures by tag, in the order of time
    lacking: list[str] = field(default_factory=list)  # sentences about contents that this folder lacks, for the report
    # content of class_results.json; None if the file is missing or damaged, as in runs that do not classify
    classes: ClassResults | None = None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def images_per_update(self) -> int | None:
        """The number of images per update, from the newest start that recorded it; None if no start did."""
        found = self._of_start("images_per_update")
        return None if found is None else int(found)

    @property
    def chance(self) -> float | None:
        """The value of the best checkpoint's metric that luck explains, recorded likewise."""
        return self._of_start("chance")

    def _of_start(self, name: str) -> float | None:
        found = [record[name] for record in self.history if is_number(record.get(name))]
        return found[-1] if found else None

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Return (updates, finite values) of a metric, from train.jsonl or, if that file has none, log.txt.

        Both lists are empty if neither file has a finite value.
        """
        for records in (self.intervals, self.epochs):
            points = [(r["step"], r[name]) for r in records if is_number(r.get(name)) and "step" in r]
            if points:
                return [float(x) for x, _ in points], [float(y) for _, y in points]
        return [], []

    def last_loss(self, name: str) -> float | None:
        """Return the newest finite epoch mean of a loss or, without one, the mean of its newest 20 finite values.

        The result is None without finite values.
        """
        ended = [record[f"train_{name}"] for record in self.epochs if is_number(record.get(f"train_{name}"))]
        if ended:
            return float(ended[-1])
        recent = self.series(name)[1][-20:]
        return sum(recent) / len(recent) if recent else None


def is_number(value: Any) -> bool:
    """Return whether a value of a record is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_run(path: Path, *, with_pictures: bool = True) -> RunFolder:
    """Return the content of the output folder of a run, by default with its pictures, which take long to read.

    Raises:
        DataError: the folder has no records in train.jsonl or log.txt.
    """
    lacking: list[str] = []
    intervals, epochs = read_lines(path / "train.jsonl"), read_lines(path / "log.txt")
    if not intervals and not epochs:
        raise DataError(
            f"{path} has no records in train.jsonl or log.txt; expected the output folder of a training run"
        )
    options = _read_options(path, lacking)
    history = read_lines(path / HISTORY)
    if not history:
        lacking.append(f"{HISTORY} with starts, stops, warnings and the environment: the run is of an earlier version.")
    trivial = read_trivial_losses(path / TRIVIAL_LOSSES)
    if not trivial and options.get("phase", "pretrain") == "pretrain":
        lacking.append(f"{TRIVIAL_LOSSES} with the losses of trivial predictors: the run is of an earlier version.")
    if options.get("phase") in _MATRIX_SOURCES:
        lacking.append(f"a confusion matrix: {_MATRIX_SOURCES[options['phase']]} writes it.")
    for name, records in (("train.jsonl", intervals), ("log.txt", epochs)):
        if not records:
            lacking.append(f"{name}: it is missing or empty; no epoch may have ended yet.")
    folder = Path(options.get("log_dir") or path)
    board = path / VISUALDL_FILE if (path / VISUALDL_FILE).is_file() else folder / VISUALDL_FILE
    pictures = _read_pictures(board, lacking) if with_pictures else {}
    record = read_record(path / "run.json")
    run = record.run if record else str((intervals or epochs)[-1].get("run", ""))
    epochs, classes = _without_constant_top5(epochs), read_class_results(path)
    return RunFolder(path, run, options, intervals, epochs, history, trivial, pictures, lacking, classes)


def read_lines(path: Path) -> Records:
    """Return the JSON objects of a file's undamaged lines; [] if the file cannot be read."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_trivial_losses(path: Path) -> Mapping[str, Any]:
    """Return the content of a file trivial_losses.json; empty if the file is missing or damaged."""
    records = read_lines(path)
    losses = records[0].get("losses") if len(records) == 1 else None
    return records[0] if isinstance(losses, dict) and all(isinstance(x, (int, float)) for x in losses.values()) else {}


def _without_constant_top5(epochs: Records) -> Records:
    """Return the records without top-5 accuracies that are 100 in all of them, as they are with up to five classes."""
    names = {name for record in epochs for name in record if name.endswith("_acc5")}
    constant = {name for name in names if all(record.get(name, 100) == 100 for record in epochs)}
    return [{name: value for name, value in record.items() if name not in constant} for record in epochs]


def _read_options(path: Path, lacking: list[str]) -> Mapping[str, Any]:
    files = [file for file in (path / CONFIG, *sorted(path.glob("config-*.yaml"))) if file.is_file()]
    for file in files[::-1]:  # config-RUN.yaml exists if config.yaml is the user's
        try:
            options = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(options, dict):
            return options
    lacking.append(f"{CONFIG} with the options.")
    return {}


def _read_pictures(path: Path, lacking: list[str]) -> Mapping[str, Sequence[Picture]]:
    if not path.is_file():
        lacking.append(f"{path.name} with pictures of reconstructions: the run wrote no VisualDL records.")
        return {}
    try:
        from visualdl import LogReader

        reader = LogReader(file_path=str(path))
        tags = reader.get_tags().get("image", [])
        found = {tag: [_picture(entry) for entry in reader.get_data("image", tag)] for tag in tags}
    except Exception as error:  # visualdl is optional, and its reader raises exceptions of many types
        lacking.append(f"pictures of reconstructions: visualdl cannot read {path.name} ({error}).")
        return {}
    if not found:
        lacking.append("pictures of reconstructions: the run drew none; plsc-mae pretrain --vis_freq N draws them.")
    return found


def _picture(entry: Any) -> Picture:
    return Picture(int(entry.id), entry.image.encoded_image_string)
