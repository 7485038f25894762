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

SHEET_ROWS = 10
BATCH = 16
# Options of reconstruct that replace the checkpoint's of the same name.
OVERRIDES = (
    "input_size",
    "mask_ratio",
    "norm_pix_loss",
    "num_mask_patches",
    "second_input_size",
    "discrete_vae_weight_path",
)


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
    weights_of_it = {name for name, _ in task.model.named_parameters()}  # fixed tables need not be in the file
    missing = [name for name in report.missing if name in weights_of_it]
    if missing:
        raise CheckpointError(f"{config.model_path} lacks {len(missing)} tensors, the first {missing[0]}")
    print(f"{config.model_path}: {report}")
    images = _images(config.img_path)
    view = method.view_transform(trained)
    count, folder = min(config.max_images, len(images)), Path(config.save_path)
    sheet: list[Pictures] = []
    for start in range(0, count, BATCH):
        indices = [i * len(images) // count for i in range(start, min(start + BATCH, count))]
        samples = [view(open_image(images.path(index)), sample_rng(config.seed, 0, index)) for index in indices]
        batch = {name: paddle.to_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}
        drawn = task.pictures(batch, config.patch_stats)
        sheet.append(drawn)
        for row, index in enumerate(indices):
            name = str(Path(images.paths[index]).with_suffix(".png")).replace("/", "_")
            print(_save({label: stack[row : row + 1] for label, stack in drawn.items()}, folder / name))
    if count > 1:
        rows = {label: np.concatenate([part[label] for part in sheet])[:SHEET_ROWS] for label in sheet[0]}
        print(_save(rows, folder / "sheet.png"))


def _training_config(stored: weights.Checkpoint, config: ReconstructConfig) -> PretrainConfig:
    """The options the checkpoint was trained with, as far as it tells, under those of the command line."""
    if "method" in stored.meta and "args" in stored.meta:
        trained = from_mapping(stored.meta["args"], PRETRAIN, config.model_path)
    else:
        trained = _read_off(stored, config)
    known = {field.name for field in dataclasses.fields(trained)}
    given: dict[str, Any] = {name: getattr(config, name) for name in OVERRIDES if getattr(config, name) is not None}
    for name in given:
        if name not in known:
            raise ConfigError(f"--{name} is no option of method '{trained.method}', which {config.model_path} is of")
    return dataclasses.replace(trained, resume="", auto_resume=False, **given)


def _read_off(stored: weights.Checkpoint, config: ReconstructConfig) -> PretrainConfig:
    """The options of a foreign file, by the shapes of its tensors."""
    for name in PRETRAIN:
        method = load_method(name)
        if stored.dialect in method.foreign:
            arguments = method.foreign[stored.dialect](stored.model, config.model_path)
            for heads in ("num_heads", "decoder_num_heads"):
                arguments[heads] = getattr(config, heads) or arguments[heads]
                if arguments[heads] is None:
                    raise ConfigError(f"{config.model_path} does not tell its number of heads; give it with --{heads}")
            return method.config_of(arguments)
    raise CheckpointError(
        f"{config.model_path} does not tell what network it holds; expected a pre-training checkpoint of this "
        "suite, facebookresearch/mae, Atten4Vis/CAE or PLSC"
    )


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
