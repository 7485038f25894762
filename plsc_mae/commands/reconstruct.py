"""`plsc-mae reconstruct`: one labelled panel per image of what a pre-trained model redraws."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from plsc_mae import weights
from plsc_mae.analysis.panel import compose
from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.config.tools import ReconstructConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.imagefolder import ImageList, PathTable, find_images
from plsc_mae.data.randomness import sample_rng
from plsc_mae.errors import CheckpointError, ConfigError, DataError
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Pictures
from plsc_mae.parallel.data import World
from plsc_mae.weights.dialects import facebook

SHEET_ROWS = 10


def run(config: ReconstructConfig) -> None:
    """Draw and save the panels.

    Raises:
        CheckpointError: the file cannot be read, or lacks the part that draws.
        DataError: there is no image, or one that cannot be decoded.
    """
    World(config.device)
    stored = weights.read(config.model_path)
    trained = _training_config(stored, config)
    method = load_method(trained.method)
    task = method.build_task(trained)
    report = weights.load(task.model, stored)
    if report.missing:
        raise CheckpointError(f"{config.model_path} lacks {len(report.missing)} tensors, the first {report.missing[0]}")
    print(f"{config.model_path}: {report}")
    if config.patch_stats is not None:
        if not getattr(task.model, "norm_pix_loss", False):
            raise ConfigError("--patch_stats is for models trained with norm_pix_loss; this one predicts pixels")
        task.patch_stats = config.patch_stats

    images = _images(config.img_path)
    view = method.view_transform(trained)
    count, folder = min(config.max_images, len(images)), Path(config.save_path)
    drawn = []
    for i in range(count):
        index = i * len(images) // count
        sample = view(open_image(images.path(index)), sample_rng(config.seed, 0, index))
        drawn.append(task.pictures({name: paddle.to_tensor(value[None]) for name, value in sample.items()}))
        name = str(Path(images.paths[index]).with_suffix(".png")).replace("/", "_")
        print(_save(drawn[-1], folder / name))
    if count > 1:
        rows = {label: np.concatenate([pictures[label] for pictures in drawn[:SHEET_ROWS]]) for label in drawn[0]}
        print(_save(rows, folder / "sheet.png"))


def _training_config(stored: weights.Checkpoint, config: ReconstructConfig) -> PretrainConfig:
    """The options the checkpoint was trained with, as far as it tells, under those of the command line."""
    if "method" in stored.meta and "args" in stored.meta:
        trained = from_mapping(stored.meta["args"], PRETRAIN, config.model_path)
    elif stored.dialect in ("facebook", "plsc"):
        arguments = facebook.infer_arguments(stored.model, config.model_path)
        for name in ("num_heads", "decoder_num_heads"):
            arguments[name] = getattr(config, name) or arguments[name]
            if arguments[name] is None:
                raise ConfigError(f"{config.model_path} does not tell its number of heads; give it with --{name}")
        trained = load_method("mae").config_of(arguments)
    else:
        raise CheckpointError(
            f"{config.model_path} does not tell what network it holds; expected a pre-training checkpoint of this "
            "suite, facebookresearch/mae or PLSC"
        )
    names = ("input_size", "mask_ratio", "norm_pix_loss")
    given: dict[str, Any] = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return dataclasses.replace(trained, resume="", auto_resume=False, **given)


def _images(img_path: str) -> ImageList:
    path = Path(img_path)
    if path.is_file():
        return ImageList(PathTable([path.name]), np.full(1, -1, np.int64), (), str(path.parent))
    if not path.is_dir():
        raise DataError(f"--img_path {path} does not exist; expected an image or a folder of images")
    return find_images(path, "val")


def _save(pictures: Pictures, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compose(pictures).save(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    return path
