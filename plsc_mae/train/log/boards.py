"""Boards that show a run while it trains: VisualDL, TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plsc_mae.config import TrainingConfig
from plsc_mae.config.schema import options, plain_values
from plsc_mae.errors import ConfigError, flag

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # package that a --logger needs
PROJECT = "plsc_mae"  # of Weights & Biases, unless WANDB_PROJECT is set
RUN_TITLES = ("Run", "Checkpoints and resuming")  # groups of options that do not change what is learned
# Options in the table of hyper-parameters of every run that has them, besides those that differ from their defaults.
HYPER_PARAMETERS = ("lr", "blr", "epochs", "batch_size", "accum_iter", "weight_decay", "warmup_epochs", "seed", "model")


class RunOptions(NamedTuple):
    """Name and options of a run, as boards show them."""

    name: str = ""  # the run's name
    # options as text by heading and name; the first table has method, phase and the changed options
    tables: Mapping[str, Mapping[str, str]] = {}
    hyper_parameters: Mapping[str, int | float | str] = {}  # the options that runs are compared by
    epochs: int = 1  # epochs of the whole run; all metrics are known after the last one

    @classmethod
    def of(cls, config: TrainingConfig) -> RunOptions:
        """Return name and options of a run; the name is --exp_name, else that of the output folder."""
        values, declared = plain_values(config), options(type(config))
        texts = {name: _text(value) for name, value in values.items()}
        changed = [item.name for item in declared if getattr(config, item.name) != item.default]
        tables = {"changed": {name: texts[name] for name in ("method", "phase", *changed) if name in texts}}
        for item in declared:
            heading = item.metadata["group"].partition(" (")[0]
            tables.setdefault(heading, {})[item.name] = texts[item.name]
        unimportant = {item.name for item in declared if item.metadata["group"] in RUN_TITLES} - set(HYPER_PARAMETERS)
        compared = dict.fromkeys([*HYPER_PARAMETERS, "method", *changed])
        return cls(
            config.exp_name or Path(config.output_dir).absolute().name,
            tables,
            {
                name: values[name] if _is_plain(values[name]) else texts[name]
                for name in compared
                if name in values and values[name] is not None and name not in unimportant
            },
            config.epochs,
        )


def _is_plain(value: Any) -> bool:
    """Return whether the table of hyper-parameters can hold a value unchanged; its integers have 32 bits."""
    return type(value) in (float, str) or (type(value) is int and abs(value) < 1 << 31)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)


class Board(Protocol):
    """Receiver of a run's records; steps count updates, and tags have the form group/name."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each tag."""

    def add_images(self, images: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
        """Add an image, uint8 [H, W, 3], to each tag."""

    def add_histograms(self, values: Mapping[str, npt.NDArray[np.float32]], step: int) -> None:
        """Add the histogram of an array to each tag."""

    def add_options(self, tables: Mapping[str, Mapping[str, str]], step: int) -> None:
        """Add the tables of options by heading."""

    def add_hyper_parameters(self, values: Mapping[str, int | float | str], metrics: Iterable[str], step: int) -> None:
        """Add the options that runs are compared by, beside the tags `metrics` of their results."""

    def sync(self) -> bool:
        """Write the records that wait in memory and return whether that succeeded."""

    def close(self) -> None:
        """Write the records that wait in memory and stop the threads and processes of the board."""


class TensorBoardEvents:
    """Event files for TensorBoard in LOG_DIR/tensorboard, written by a thread of tensorboardX.

    Args:
        log_dir: folder of the run's records.
        step: finished updates. TensorBoard ignores records of later steps that earlier starts wrote to this folder.

    Raises:
        ConfigError: tensorboardX cannot be imported.
    """

    def __init__(self, log_dir: Path, step: int) -> None:
        writer = import_package("tensorboard").SummaryWriter
        self._writer = writer(str(log_dir / "tensorboard"), purge_step=step + 1 if step else 0)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def add_images(self, images: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
        """Add an image [H, W, 3] to each tag."""
        for tag, image in images.items():
            self._writer.add_image(tag, image, step, dataformats="HWC")

    def add_histograms(self, values: Mapping[str, npt.NDArray[np.float32]], step: int) -> None:
        """Add the histogram of an array to each tag."""
        for tag, array in values.items():
            self._writer.add_histogram(tag, array, step)

    def add_options(self, tables: Mapping[str, Mapping[str, str]], step: int) -> None:
        """Add each table of options as a Markdown table."""
        for title, table in tables.items():
            rows = "\n".join(f"| {name} | {value} |" for name, value in table.items())
            self._writer.add_text(f"config/{title}", f"| option | value |\n|---|---|\n{rows}", step)

    def add_hyper_parameters(self, values: Mapping[str, int | float | str], metrics: Iterable[str], step: int) -> None:
        """Do nothing: tensorboardX would show them as another run."""

    def sync(self) -> bool:
        """Wait until the thread has written all records; return True."""
        self._writer.flush()
        return True

    def close(self) -> None:
        """Write all records and end the thread."""
        self._writer.close()


class WandbRun:
    """Run of Weights & Biases, with files in LOG_DIR/wandb; WANDB_MODE=offline keeps them on this machine.

    Weights & Biases accepts no step below the newest one. After a resume it ignores the records of the updates that it
    has already seen.

    Args:
        log_dir: folder of the run's records.
        run: id of the run, under which a resumed run continues.
        described: name and options of the run.

    Raises:
        ConfigError: wandb cannot be imported.
    """

    def __init__(self, log_dir: Path, run: str, described: RunOptions) -> None:
        self._package = import_package("wandb")
        log_dir.mkdir(parents=True, exist_ok=True)
        all_options = {name: value for table in described.tables.values() for name, value in table.items()}
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(log_dir),
            id=run or None,
            name=described.name or None,
            config={**all_options, **described.hyper_parameters},
            resume="allow",
        )

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each tag."""
        self._run.log(dict(values), step=step)

    def add_images(self, images: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
        """Add an image [H, W, 3] to each tag."""
        self._run.log({tag: self._package.Image(image) for tag, image in images.items()}, step=step)

    def add_histograms(self, values: Mapping[str, npt.NDArray[np.float32]], step: int) -> None:
        """Add the histogram of an array to each tag."""
        self._run.log({tag: self._package.Histogram(array) for tag, array in values.items()}, step=step)

    def add_options(self, tables: Mapping[str, Mapping[str, str]], step: int) -> None:
        """Do nothing: `init` has received the options."""

    def add_hyper_parameters(self, values: Mapping[str, int | float | str], metrics: Iterable[str], step: int) -> None:
        """Do nothing: `init` has received the options, and the newest value of a curve is the run's result."""

    def sync(self) -> bool:
        """Return True: a process of wandb writes the records."""
        return True

    def close(self) -> None:
        """Wait until wandb has written, or uploaded, all records."""
        self._run.finish(quiet=True)


def import_package(logger: str) -> ModuleType:
    """Import and return the package of a --logger.

    Raises:
        ConfigError: it is not installed, or its import fails.
    """
    package = PACKAGES[logger]
    try:
        return importlib.import_module(package)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{flag('logger')} {logger} needs the package {package}, which cannot be imported ({reason}): "
            f"pip install {package}, or choose another {flag('logger')}"
        ) from None


def require_packages(loggers: Sequence[str]) -> None:
    """Raise ConfigError if the package of a --logger cannot be imported; without visualdl a run only warns."""
    for name in loggers:
        if name in PACKAGES:
            import_package(name)
