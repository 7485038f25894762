"""Finds the weight files of a model folder: Hugging Face's, and DeepSpeed's checkpoints.

A folder of Hugging Face has config.json beside one file of weights, or beside several shards and an index of them. The
folder of a repository in the Hub's cache is read through its only snapshot.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from plsc_mae.errors import CheckpointError
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

SINGLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
INDEX = ".index.json"
DEEPSPEED = "mp_rank_*_model_states.pt"
DEEPSPEED_SHARDS = "zero_pp_rank_*_model_states.pt"
# Folders that are recognized but not read: {file pattern: content and remedy}.
UNREADABLE = {
    DEEPSPEED_SHARDS: (
        "a checkpoint of DeepSpeed's ZeRO stage 3, whose weights are divided among the files of its processes; merge "
        "them with `python zero_to_fp32.py . merged.bin` in the checkpoint's folder, where DeepSpeed wrote that script"
    ),
    "*.distcp": (
        "a sharded checkpoint of torch.distributed; convert it with `python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`"
    ),
    "adapter_config.json": "an adapter without its base network; merge both in peft and save the result",
    "tf_model.h5": "weights of TensorFlow; save them from transformers' PyTorch class with `save_pretrained`",
    "flax_model.msgpack": "weights of Flax; save them from transformers' PyTorch class with `save_pretrained`",
}
RUN_RECORD, RUN_CHECKPOINTS = "run.json", "*checkpoint-*.pd"  # of plsc_mae's training runs
WEIGHT_SUFFIXES = (".pd", ".pdparams", ".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".npz")
MAX_LISTED = 3  # names in a message


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1


def _is_size(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))


# Entries of config.json -> options of plsc_mae, and the check of their values.
OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_attention_heads": ("num_heads", _is_count),
    "decoder_num_attention_heads": ("decoder_num_heads", _is_count),
    "layer_norm_eps": ("norm_eps", _is_fraction),
    "image_size": ("input_size", _is_size),
    "norm_pix_loss": ("norm_pix_loss", lambda value: isinstance(value, bool)),
    "mask_ratio": ("mask_ratio", _is_fraction),
}
# Values of `hidden_act` in config.json: the activation of all networks here, and approximations of it by tanh, which
# differ by up to 5e-4.
GELU = ("gelu", "gelu_python")
APPROXIMATE_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate")
MAX_STATISTIC = 1000  # limit of means and stds
CLASS_NUMBER = re.compile(r"[0-9]{1,9}")
NUMBERED_LABEL = re.compile(r"LABEL_\d+")  # name that transformers gives to a class without a name


class ImageStatistics(NamedTuple):
    """Mean and std, three values each, by which images with values in [0, 1] were normalized in training."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ImageStatistics((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class ModelFolder:
    """Weight files of a folder."""

    kind: str  # description of the folder, such as "DeepSpeed folder"
    files: tuple[Path, ...]  # the weight files
    # {tensor: name of its file} of a sharded model; empty for a single file
    places: Mapping[str, str] = field(default_factory=dict)
    # entries that the folder states: `args` (training options), `config` (content of
    # config.json), `classes` (their names) and `statistics` (of the images)
    meta: Mapping[str, Any] = field(default_factory=dict)


def open_folder(folder: Path) -> ModelFolder:
    """Return the weight files and settings of a folder.

    Raises:
        CheckpointError: the folder has no weights or an unsupported kind of them, or one of its files is missing,
            unreadable or invalid.
        OSError: the folder or its file `latest` cannot be read.
    """
    snapshots = [path for path in sorted(folder.glob("snapshots/*")) if path.is_dir()]
    if len(snapshots) == 1:
        folder = snapshots[0]
    for name in SINGLE:
        if (folder / name).is_file():
            return ModelFolder("Hugging Face folder", (folder / name,), meta=_settings(folder))
        if (folder / (name + INDEX)).is_file():
            places = _places(folder, name + INDEX)
            files = tuple(folder / shard for shard in dict.fromkeys(places.values()))
            return ModelFolder("sharded Hugging Face folder", files, places, _settings(folder))
    return _open_deepspeed(folder)


def _open_deepspeed(folder: Path) -> ModelFolder:
    """Return the file of a DeepSpeed checkpoint in `folder`, or in the sub-folder that the file `latest` names."""
    inner = folder
    if (folder / "latest").is_file():
        tag = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
        if _is_plain(tag) and (folder / tag).is_dir():
            inner = folder / tag
    files = sorted(inner.glob(DEEPSPEED))
    if len(files) == 1:
        return ModelFolder("DeepSpeed folder", (files[0],))
    if files:
        raise CheckpointError(
            f"{folder} is a checkpoint of DeepSpeed in {len(files)} tensor-parallel parts ({_listed(files)}); merge "
            "them with the program that wrote it and give the merged file"
        )
    for pattern, content in UNREADABLE.items():
        if any(inner.glob(pattern)):
            raise CheckpointError(f"{folder} is {content}, and give the new file")
    if (folder / RUN_RECORD).is_file() or any(folder.glob(RUN_CHECKPOINTS)):
        raise CheckpointError(describe_run_folder(folder))
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    contents = f"; it contains {_listed(found)}" if found else ""
    raise CheckpointError(
        f"{folder} is a folder without {', '.join(SINGLE)}, an index of shards, or a checkpoint of OneFlow or "
        f"DeepSpeed; give the weight file inside it{contents}"
    )


def describe_run_folder(folder: Path) -> str:
    """Return the error message for a folder that is given instead of a checkpoint file of a run.

    The message names the newest checkpoint in the folder, if there is one.
    """
    checkpoints = [path for path in folder.glob(RUN_CHECKPOINTS) if path.is_file()]
    if not checkpoints:
        return f"{folder} is a folder without checkpoints of a run; give the file of a checkpoint"
    newest = max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name))
    return f"{folder} is the folder of a run; give one of its checkpoints, the newest is {newest}"


def _places(folder: Path, name: str) -> dict[str, str]:
    """Read the index of a sharded model, {tensor: file name}; a missing file is a CheckpointError."""
    places = _read_json(folder / name).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / name} has no table 'weight_map' of tensors and files; fetch it again")
    for tensor, shard in places.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise CheckpointError(
                f"{folder / name} places tensor {tensor} outside its folder, in {shard!r}; expected the name of a file "
                "beside it"
            )
    shards = sorted(set(places.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {counted(len(shards), 'shard')} that {name} names: "
            f"{_listed([Path(shard) for shard in missing])}; fetch them into the same folder"
        )
    return places


def _is_plain(name: str) -> bool:
    """Return True if `name` is a single component of a path."""
    return name not in ("", ".", "..") and not any(letter in name for letter in "/\\\0")


def _listed(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:MAX_LISTED])
    return names + (f" and {len(paths) - MAX_LISTED} more" if len(paths) > MAX_LISTED else "")


# ------------------------------------------------------------------------------------------------ settings


def _settings(folder: Path) -> dict[str, Any]:
    """Return `ModelFolder.meta` from config.json and preprocessor_config.json; empty if config.json has no entries."""
    config, images = (
        _read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("config.json", "preprocessor_config.json")
    )
    if not config:
        return {}
    options: dict[str, Any] = {}
    for theirs, (ours, is_valid) in OPTIONS.items():
        if config.get(theirs) is None:
            continue
        if not is_valid(config[theirs]):
            raise CheckpointError(f"{folder / 'config.json'}: {theirs} has the invalid value {config[theirs]!r}")
        options[ours] = config[theirs]
    if "norm_eps" in options:
        options["final_norm_eps"] = options["norm_eps"]
    _check_activation(config, folder)
    timm = config.get("pretrained_cfg")  # timm's own folders describe images and classes in this table
    timm = timm if isinstance(timm, dict) else {}
    statistics = _statistics(images, timm, folder)
    if statistics == HALVES:
        options["imagenet_inception_mean_and_std"] = True
    meta: dict[str, Any] = {"config": config, "args": options}
    if statistics is not None:
        meta["statistics"] = statistics
    names = timm.get("label_names")
    if classes := _class_names(config, folder) or (names if isinstance(names, list) else []):
        meta["classes"] = classes
    return meta


def _check_activation(config: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError if the MLPs have another activation than GELU; only warn if it approximates GELU."""
    activation = config.get("hidden_act") or GELU[0]
    if activation in APPROXIMATE_GELU:
        logger.warning("%s: hidden_act is %s; exact GELU is used, so features differ slightly", folder, activation)
    elif activation not in GELU:
        raise CheckpointError(
            f"{folder / 'config.json'}: hidden_act is {activation!r}, but the networks here have 'gelu'; use the "
            "library that trained it"
        )


def _statistics(images: Mapping[str, Any], timm: Mapping[str, Any], folder: Path) -> ImageStatistics | None:
    """Return the statistics of the images; None if the folder states neither a mean nor `do_normalize` false."""
    if images.get("do_normalize") is False:
        return ImageStatistics((0.0,) * 3, (1.0,) * 3)
    mean, std = images.get("image_mean", timm.get("mean")), images.get("image_std", timm.get("std"))
    if mean is None:
        return None
    if std is None:
        std = list(HALVES.std if tuple(_per_channel(mean)) == HALVES.mean else IMAGENET.std)
    found = ImageStatistics(*(tuple(_per_channel(values)) for values in (mean, std)))
    if len(found.mean) != 3 or len(found.std) != 3 or not min(found.std) > 0:
        raise CheckpointError(
            f"{folder}: images have the mean {mean!r} and the std {std!r}; expected three numbers each, and a positive "
            "std; fetch its preprocessor_config.json or config.json again"
        )
    return found


def _per_channel(values: Any) -> list[float]:
    """Return the list `values`, or three copies of a single number; empty if a value is no number or is too large."""
    rows = [values] * 3 if type(values) in (int, float) else values
    valid = isinstance(rows, list) and all(type(value) in (int, float) and abs(value) < MAX_STATISTIC for value in rows)
    return rows if valid else []


def _class_names(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the names of `id2label` in the order of their indices; empty if they are missing, default or invalid."""
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(CLASS_NUMBER.fullmatch(number) for number in labels):
        logger.warning("%s: id2label is not a table of numbers and names; classes are shown as numbers", folder)
        return []
    named = {int(number): str(name) for number, name in labels.items()}
    if all(NUMBERED_LABEL.fullmatch(name) for name in named.values()):
        return []
    if sorted(named) != list(range(len(named))):
        logger.warning(
            "%s: id2label does not number its %s from 0; they are not used", folder, counted(len(named), "name")
        )
        return []
    return [named[number] for number in range(len(named))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON; fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains a JSON {type(content).__name__}, expected an object; fetch it again")
    return content
