"""The Python API: `plsc_mae.train`, `plsc_mae.embed` and `plsc_mae.export`, for scripts and notebooks.

The functions take the options of the commands by name, check them in the same way and raise the same errors, which are
subclasses of `plsc_mae.errors.UserError`; messages name options as flags. Loader processes end with the call.
Only a hang (--hang_timeout) or, outside interactive sessions, a second Ctrl-C ends the interpreter. docs/python.md has
examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from plsc_mae import console
from plsc_mae.commands import classify, extract, pretrain
from plsc_mae.commands import export as export_command
from plsc_mae.config import PHASES, ClassifyConfig, PretrainConfig, TrainingConfig
from plsc_mae.config.export import ExportConfig
from plsc_mae.config.features import EmbedConfig, ExtractConfig
from plsc_mae.config.resolve import from_options
from plsc_mae.config.schema import suggest, vocabulary
from plsc_mae.data.imagefolder import GivenImages, ImageList
from plsc_mae.data.pixels import RGB_CHANNELS, PixelFormat
from plsc_mae.data.sequence import sequence_images
from plsc_mae.data.workers import ending_workers
from plsc_mae.errors import ConfigError, Stopped, use_flags
from plsc_mae.methods.base import Task
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint.file import checkpoint_path, find_newest
from plsc_mae.train.checkpoint.state import BEST
from plsc_mae.train.log.run_logger import RUN
from plsc_mae.train.log.tags import POSITION_FIELDS

Images = str | os.PathLike[str] | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Result of `train`.

    Attributes:
        folder: output folder of the run.
        checkpoint: newest undamaged checkpoint of the run, by number of updates; None if it has no such checkpoint.
        best: checkpoint-best.pd of the run, which has the best validation metric; None if it does not exist.
        metrics: values by name, for example "train_loss" and "test_acc1". They are those of the last line of log.txt,
            or of train.jsonl if the run ended within an epoch; with `eval`, those of the evaluation. Empty without
            logs.
    """

    folder: Path
    checkpoint: Path | None
    best: Path | None
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """Result of `export`.

    Attributes:
        folder: output folder.
        files: paths of the files of the export.
        verdict: sentence that gives the result of the comparison with the network, or why there was no comparison.
    """

    folder: Path
    files: list[Path]
    verdict: str


class Embedding(np.ndarray[Any, np.dtype[np.float32]]):
    """Features of images, float32 [n, D].

    Attributes:
        paths: paths of the n images relative to their folder, or their places in the sequence, such as "data[0]".
            For arrays computed from this one and for slices, it is ().
    """

    paths: Sequence[str] = ()


def train(
    data: Images | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    method: str | None = None,
    phase: str = "pretrain",
    eval_data: Images | None = None,
    task: Task | str | None = None,
    **options: Any,
) -> TrainResult:
    """Pre-train a network, fine-tune or probe a classifier, or continue such a run, in this process; return the result.

    Ctrl-C, or "interrupt" in a notebook, saves the run before it ends, unless `save_ckpt` is False; `auto_resume=True`
    continues it.

    Args:
        data: training images: a folder or list file (--data_path), a sequence of images, or a sequence of pairs of an
            image and a label; see `plsc_mae.data.sequence.sequence_images`.
        out: output folder (--output_dir).
        model: name of the network (--model).
        method: name of the method (--method), if `model` does not determine it.
        phase: the command: "pretrain", "finetune" or "linprobe".
        eval_data: labeled validation images (--eval_data_path), in the same forms as `data`.
        task: in pre-training, a `Task` that replaces the method's own; batches, optimizer and schedule stay those of
            the method. For a classifier, the name of the kind of labels (--task).
        options: further options of the command; `config` is a YAML file or the name of a recipe.

    Raises:
        UserError: options, data, folders or checkpoints cannot be used, or the training diverges.
        KeyboardInterrupt: Ctrl-C ended the run; the message has its position and checkpoint, if any.
        Stopped: SIGTERM ended the run.
    """
    if phase not in PHASES:
        raise ConfigError(f"phase {phase!r}: expected one of {', '.join(PHASES)}{suggest(str(phase), PHASES)}")
    if isinstance(task, str):
        options, task = {**options, "task": task}, None
    if task is not None and phase != "pretrain":
        raise ConfigError(f"task replaces the objective of pre-training, but phase is '{phase}'; leave task out")
    own = {"data_path": _path(data, "data"), "eval_data_path": _path(eval_data, "eval_data"), "output_dir": out}
    with _session():
        values = _merge("train", {**own, "model": model, "method": method}, options)
        config = _resolve(values, PHASES[phase], "train")
        console.use_style(quiet=config.quiet, as_json=config.json)
        given = _given(data, eval_data, config)
        if isinstance(config, PretrainConfig):
            pretrain.train(config, given, task)
            return _result(config, {})
        return _result(config, classify.train(config, given) if isinstance(config, ClassifyConfig) else {})


def embed(
    data: Images | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Embedding:
    """Return one feature vector per image, in order: by default the mean of the last block's patch tokens.

    An image of a folder or list file that cannot be read is left out with a warning, unless `bad_image` is "error"; in
    a sequence it is an error.

    Args:
        data: a folder or list file (--data_path), or a sequence of images or of pairs of an image and a label.
        model: checkpoint of plsc_mae or of another code base (--model_path).
        out: file to write as well, .npz, .safetensors or .parquet (--save_path); it also has labels and class names.
        options: further options of `plsc-mae extract`; `layers` and `tokens` may have only one value each.

    Raises:
        UserError: options, images, checkpoint or file cannot be used.
    """
    with _session():
        own = {"data_path": _path(data, "data"), "model_path": model, "save_path": out}
        values = {"tokens": "mean"} | _merge("embed", own, options)
        config: EmbedConfig = _resolve(values, {"": ExtractConfig if values.get("save_path") else EmbedConfig}, "embed")
        if len(set(config.layers)) * len(set(config.tokens)) > 1:
            raise ConfigError(
                f"embed returns one array, but layers {list(config.layers)} and tokens {list(config.tokens)} give "
                "several; name one of each, or write all with `plsc-mae extract`"
            )
        if isinstance(config, ExtractConfig):
            extract.check_destination(config)
        form = PixelFormat(config.wanted_channels or RGB_CHANNELS, config.bands or ())
        labeled = isinstance(config, ExtractConfig)
        images = _in_memory(data, "data", form, labeled=labeled)
        features = extract.compute(config, World(config.device), images)
        if isinstance(config, ExtractConfig):
            extract.save(config, features)
        (array,) = features.arrays.values()
        result = array.astype(np.float32, copy=False).view(Embedding)
        result.paths = features.paths
        return result


def export(
    model: str | os.PathLike[str] | None = None,
    target: str | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ExportResult:
    """Write a network for another program or library, with an example of its use, and check its outputs there.

    If the target's packages are not installed, nothing is checked; the verdict of the result gives the reason.

    Args:
        model: checkpoint of plsc_mae or of another code base (--model_path).
        target: the program or library (--target), for example "onnx".
        out: folder to write (--save_path).
        options: further options of `plsc-mae export`.

    Raises:
        UserError: options or checkpoint cannot be used, the target cannot represent the network or lacks a package, the
            outputs differ, or the folder cannot be written.
    """
    with _session():
        own = {"model_path": model, "target": target, "save_path": out}
        config: ExportConfig = _resolve(_merge("export", own, options), {"": ExportConfig}, "export")
        done, folder = export_command.export(config), Path(config.save_path)
        return ExportResult(folder, [folder / name for name in done.files], str(done.verdict))


# ------------------------------------------------------------------------------------------------- options


def _merge(function: str, own: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` together with the parameters `own` that are not None; raise ConfigError if a name is in both."""
    given = {name: value for name, value in own.items() if value is not None}
    if twice := sorted(given.keys() & options.keys()):
        raise ConfigError(f"{function} got {twice[0]} twice, as an option and as one of its first arguments; give one")
    return {**given, **options}


def _resolve(values: Mapping[str, Any], configs: Mapping[str, type], function: str) -> Any:
    """Return the config of a call; from then on messages suggest only its options."""
    config = from_options(values, configs, prog=function)
    use_flags(vocabulary(type(config)) | (set() if "" in configs else {"method"}))
    return config


def _is_path(data: object) -> bool:
    return data is None or isinstance(data, (str, os.PathLike))


def _path(data: Any, name: str) -> Any:
    """Return `data` if it is a path or None; for a sequence, return a text that represents it in the options."""
    return data if _is_path(data) else f"<{name} in memory>"


def _given(data: Any, eval_data: Any, config: TrainingConfig) -> GivenImages:
    """Return the images that the caller of `train` passed in memory; None for data given by a path or not at all."""
    labeled = not isinstance(config, PretrainConfig) or config.online_probe or config.knn_freq > 0
    form = PixelFormat(config.channels, tuple(config.bands or ()))
    train, val = (
        _in_memory(value, name, form, labeled=labeled) for value, name in ((data, "data"), (eval_data, "eval_data"))
    )
    return GivenImages(train, val)


def _in_memory(data: Any, name: str, pixel_format: PixelFormat, *, labeled: bool) -> ImageList | None:
    return None if _is_path(data) else sequence_images(data, name, labeled=labeled, pixel_format=pixel_format)


# ------------------------------------------------------------------------------------------ calls and results


@contextlib.contextmanager
def _session() -> Iterator[None]:
    """Show the log during a call; after it, end loader processes and restore the caller's device."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        raise ConfigError("the Python API runs in one process; start several with `plsc-mae launch`")
    device = paddle.get_device()
    try:
        with console.showing_log(), ending_workers():
            yield
    except Stopped as stop:
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt(str(stop)) from None
        raise
    finally:
        use_flags(None)
        paddle.set_device(device)


def _result(config: TrainingConfig, evaluated: Mapping[str, float]) -> TrainResult:
    best = checkpoint_path(config.output_dir, config.exp_name, BEST)
    folder = Path(config.output_dir)
    return TrainResult(
        folder=folder,
        checkpoint=find_newest(config.output_dir, config.exp_name),
        best=best if best.exists() else None,
        metrics=dict(evaluated) if getattr(config, "eval", False) else _last_metrics(folder),
    )


def _last_metrics(folder: Path) -> dict[str, float]:
    """Return the values of the last epoch of a run, or of the last print interval if that is later; {} without logs."""
    epoch, interval = _last_record(folder / "log.txt"), _last_record(folder / "train.jsonl")
    if interval.get("step", 0) > epoch.get("step", 0):
        place = {name: interval[name] for name in POSITION_FIELDS}
        return place | {f"train_{name}": value for name, value in interval.items() if name not in place}
    return epoch


def _last_record(path: Path) -> dict[str, float]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    record: dict[str, float] = json.loads(lines[-1]) if lines else {}
    record.pop(RUN, None)
    return record
