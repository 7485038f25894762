"""The last lines of a run: commands that use its result, with DIR in place of a path of images that is unknown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from paddle import nn

from plsc_mae import console
from plsc_mae.analysis.class_counts import describe_imbalance
from plsc_mae.commands import usage_lines
from plsc_mae.config import FINETUNE, ClassifyConfig, PretrainConfig, TrainingConfig
from plsc_mae.config.classify import FinetuneConfig
from plsc_mae.data.classify import TINY_SIDE
from plsc_mae.data.imagefolder import validation_list_beside
from plsc_mae.data.listing import ImageList, has_split
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.train.announcements import FEW_IMAGES, IN_MEMORY
from plsc_mae.train.checkpoint.folder import config_path
from plsc_mae.train.scaling import higher_rate
from plsc_mae.wording import guides

PLACEHOLDER = "DIR"  # a folder that the reader chooses, as in the lines of `weights inspect`
FEW_BATCH, FEW_EPOCHS, FEWEST_EPOCHS, FEWEST_IMAGES = 16, 100, 300, 300  # as in docs/few-images.md
# Encoders narrower than ViT-Ti need a higher learning rate on few images. docs/few-images.md has measured a width of 64
# with MAE, whose default rate is NARROW_DEFAULT, from FEWEST_NARROW images on: 40 % at the default, 79 % at ten times
# that, 88 to 95 % with the commands of the page. More than FEW_IMAGES get the rate only, with which 3719 cells were
# measured. Others get the next higher rate.
NARROW, NARROW_DEFAULT, FEWEST_NARROW = 192, 0.001, 100
NARROW_EPOCHS, NARROW_RATE = " --epochs 60 --warmup_epochs 5", " --blr 0.03"
RATE_PAGES = guides("few-images", "read-the-curves")  # about runs that learn nothing


def after_pretraining(config: PretrainConfig, network: nn.Layer, checkpoint: Path, images: ImageList) -> None:
    """Print the commands that examine and use a pre-trained network.

    Args:
        config: options of the run.
        network: the whole trained network.
        checkpoint: last checkpoint of the run.
        images: training images of the run; with two or more classes, they can train a classifier.
    """
    folder = Path(config.output_dir)
    steps = {"learning": f"plsc-mae report {shlex.quote(str(folder))}"}
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, VisionTransformer):
        file, pictures = shlex.quote(str(checkpoint)), shlex.quote(str(folder / "reconstruction"))
        steps["pictures"] = (
            f"plsc-mae reconstruct --model_path {file} --img_path {_data(config)} --save_path {pictures}{_tile(config)}"
        )
        lines = usage_lines.training(str(checkpoint), config.method, usage_lines.sizes_of(encoder), stores_sizes=True)
        if "finetune" in lines:
            tuned = shlex.quote(str(folder.with_name(f"{folder.name}-finetune")))
            labeled = images.labels if len(images.classes) > 1 else None
            flags = _classifier_flags(config, labeled, encoder.embed_dim)
            line = f"{lines['finetune']} --output_dir {tuned}{flags}"
            own = PLACEHOLDER if labeled is None else _data(config)
            steps["classifier"] = line.replace(f"--data_path {PLACEHOLDER}", f"--data_path {own}")
    steps["others"] = f"plsc-mae weights inspect {shlex.quote(str(checkpoint))}"
    _print(steps)


def _classifier_flags(config: PretrainConfig, labels: npt.NDArray[Any] | None, width: int) -> str:
    """Return the flags that fine-tuning needs on the images of the pre-training, with leading spaces.

    `labels` is None if the images have fewer than two classes and cannot train the classifier.
    """
    flags, default = _tile(config) + _crops(config), FINETUNE[config.method]
    labeled = 0 if labels is None else len(labels)
    is_small = labels is not None and labeled <= FEW_IMAGES
    batch_size = min(config.batch_size, FEW_BATCH if is_small else default.batch_size)
    if batch_size < default.batch_size:  # there may be fewer images than in a default batch
        flags += f" --batch_size {batch_size}"
    schedule = _schedule(default, labeled, width) if labels is not None else ""
    flags += (" --reprob 0" if is_small and default.reprob else "") + schedule
    if schedule.endswith(NARROW_RATE) and max(config.image_size) > TINY_SIDE:
        flags += "" if config.in_chans or config.bands else " --aa none"
        flags += "" if "--crop_scale" in flags else " --crop_scale 0.5 1"
    if labels is not None and describe_imbalance(np.bincount(labels)):
        flags += " --balance_classes"
    if config.bad_image == "skip":
        flags += " --bad_image skip"
    if labeled and not _has_validation(config.data_path):
        path = config.eval_data_path or validation_list_beside(config.data_path)
        flags += f" --eval_data_path {shlex.quote(path)}" if path else " --disable_eval_during_finetuning"
    return flags


def _schedule(default: type[FinetuneConfig], images: int, width: int) -> str:
    """Return the flags of epochs, for few images, and of the rate, for narrow networks, with leading spaces."""
    name = "blr" if default.lr is None else "lr"
    rate = getattr(default, name)
    is_measured = width < NARROW and (name, rate) == ("blr", NARROW_DEFAULT) and images >= FEWEST_NARROW
    if images > FEW_IMAGES:
        flags = ""
    elif is_measured:
        flags = NARROW_EPOCHS
    else:
        flags = f" --epochs {FEWEST_EPOCHS if images < FEWEST_IMAGES else FEW_EPOCHS}"
    if is_measured:
        return flags + NARROW_RATE
    return flags + (f" --{name} {higher_rate(rate):g}" if width < NARROW else "")


def _has_validation(data_path: str) -> bool:
    return data_path.startswith(IN_MEMORY) or (has_split(data_path, "train") and has_split(data_path, "val"))


def after_classification(config: ClassifyConfig, checkpoint: Path, run: str) -> None:
    """Print the commands that use a trained classifier.

    Args:
        config: options of the run.
        checkpoint: best checkpoint of the run, or the last one if nothing was evaluated.
        run: id of the run.
    """
    file, options = shlex.quote(str(checkpoint)), shlex.quote(str(config_path(config.output_dir, run)))
    folder = shlex.quote(str(Path(config.output_dir) / "export"))
    images = shlex.quote(config.eval_data_path) if config.eval_data_path else _data(config)
    images = images if _has_image_paths(config) else PLACEHOLDER
    steps = {"learning": f"plsc-mae report {shlex.quote(config.output_dir)}"}
    steps["predict"] = f"plsc-mae predict --model_path {file} --img_path {images}{_tile(config)}"
    if not config.disable_eval_during_finetuning and not config.data_path.startswith(IN_MEMORY):
        line = f"plsc-mae {config.phase} --config {options} --eval --resume {file}"
        whole = " --train_fraction 1" if config.train_fraction < 1 else ""  # --eval refuses a part
        steps["evaluate"] = f"{line}{_single_process(config)}{whole}"
    steps["deploy"] = f"plsc-mae export --target inference --model_path {file} --save_path {folder}"
    steps["others"] = f"plsc-mae weights inspect {file}"
    _print(steps)


def after_chance(config: ClassifyConfig) -> None:
    """Print the commands and pages that help after a training without success; its classifier is of no use."""
    steps = {"learning": f"plsc-mae report {shlex.quote(config.output_dir)}"}
    if not config.data_path.startswith(IN_MEMORY) and _has_image_paths(config):
        val = f" --eval_data_path {shlex.quote(config.eval_data_path)}" if config.eval_data_path else ""
        steps["data"] = f"plsc-mae doctor --data_path {_data(config)}{val}{_pixels(config)}"
    _print(steps, f"read: {RATE_PAGES}")


def _has_image_paths(config: ClassifyConfig) -> bool:
    """Return whether the paths of a run name images, as folders and lists do, and not a table or binary file."""
    return config.label_task == "classification" and config.data_set != "CIFAR"


def _single_process(config: ClassifyConfig) -> str:
    """Return the flags that undo a division of the network among processes, with leading spaces; "" if undivided."""
    flags = " --tensor_parallel 1" if config.tensor_parallel > 1 else ""
    if config.pipeline_parallel > 1:
        flags += " --pipeline_parallel 1" + (" --micro_batches none" if config.micro_batches is not None else "")
    return flags


def _data(config: TrainingConfig) -> str:
    """Return the quoted path of the images of a run, or a placeholder for images in memory."""
    return PLACEHOLDER if config.data_path.startswith(IN_MEMORY) else shlex.quote(config.data_path)


def _tile(config: TrainingConfig) -> str:
    """Return the flag --tile of the run with a leading space; "" if the run does not use it."""
    return f" --tile {config.tile}" if config.tile else ""


def _crops(config: PretrainConfig) -> str:
    """Return the flags of fine-tuning for the crops that the pre-training was given, with leading spaces."""
    rows, columns = config.image_size
    flags = " --crop_pct 1" if rows != columns else ""  # a shape chosen for whole images
    for name in ("crop_scale", "crop_ratio"):
        given, default = (getattr(source, name, ()) for source in (config, type(config)))
        if given != default and max(config.image_size) > TINY_SIDE:  # finetune refuses them for tiny images
            flags += f" --{name} {' '.join(map(str, given))}"
    return flags


def _pixels(config: TrainingConfig) -> str:
    """Return the flags of the run's channels, bands and pixel range with leading spaces; "" for RGB."""
    flags = f" --in_chans {config.in_chans}" if config.in_chans and not config.bands else ""
    for name in ("bands", "pixel_range"):
        values = getattr(config, name)
        flags += f" --{name} {' '.join(map(str, values))}" if values else ""
    return flags


def _print(steps: Mapping[str, str], last: str = "") -> None:
    """Print each purpose with its command, which calls the program in the same way as this process was called.

    `last` is a line below them.
    """
    program = console.program()
    commands = {use: line.replace(console.PROGRAM, program, 1) for use, line in steps.items()}
    width = max(map(len, commands))
    lines = [f"{console.COMMAND_INDENT}{use:<{width}}  {line}" for use, line in commands.items()]
    lines += [f"{console.COMMAND_INDENT}{last}"] if last else []
    console.report("\n".join(["next:", *lines]), {"event": "next", "commands": commands})
