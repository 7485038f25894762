"""Command lines that take a weight file, for what it holds: `plsc-mae weights inspect` prints them to be copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plsc_mae.models.registry import VARIANTS

Sizes = Mapping[str, Any]
SIZES = ("tiny", "small", "base", "large", "huge")
# Classifiers by method: how their names are made of size and patch size, and which one takes other sizes as options.
CLASSIFIERS = {
    "mae": ("vit_{}_patch{}", "vit_base_patch16"),
    "cae": ("cae_{}_patch{}_224", "cae_base_patch16_224"),
    "mae_priv": ("vit_{}_patch{}_224", "vit_base_patch16_224"),
    "mae_pytorch": ("vit_{}_patch{}_224", "vit_base_patch16_224"),
}
NO_PROBES = ("mae_pytorch",)  # its code base has none


def reconstruction(path: str, parts: Mapping[str, Sizes], flags: str = "") -> dict[str, str]:
    """The line that redraws images; `parts` are the sizes of encoder and decoder."""
    heads = _heads("num_heads", parts["encoder"]) + _heads("decoder_num_heads", parts["decoder"])
    return {"reconstruct": f"plsc-mae reconstruct --model_path {path} --img_path DIR{heads}{flags}"}


def training(path: str, method: str, encoder: Sizes) -> dict[str, str]:
    """Lines that train a classifier from a pre-trained encoder."""
    start = f"{_classifier(method, encoder)} --finetune {path} --data_path DIR"
    uses = {"finetune": f"plsc-mae finetune {start}"}
    return uses if method in NO_PROBES else uses | {"linprobe": f"plsc-mae linprobe {start}"}


def looking(path: str, encoder: Sizes) -> dict[str, str]:
    """Lines that look at an encoder as it is."""
    pool, heads = "" if encoder["class_token"] else " --pool mean", _heads("num_heads", encoder)
    return {
        "knn": f"plsc-mae knn --model_path {path} --data_path DIR{heads}",
        "explain": f"plsc-mae explain --model_path {path} --img_path DIR{pool}{heads}",
        "extract": f"plsc-mae extract --model_path {path} --data_path DIR --save_path features.npz{heads}",
    }


def prediction(path: str, encoder: Sizes, *, has_average: bool) -> dict[str, str]:
    """Lines that classify images, by the weights and by their moving average."""
    line = f"plsc-mae predict --model_path {path} --img_path DIR{_heads('num_heads', encoder)}"
    return {"predict": line} | ({"predict by model_ema": f"{line} --model_key model_ema"} if has_average else {})


def tokenization(path: str) -> dict[str, str]:
    """The line that pre-trains CAE on a tokenizer's tokens."""
    return {"pretrain": f"plsc-mae pretrain --method cae --discrete_vae_weight_path {path} --data_path DIR"}


def resumption(path: str, phase: str) -> dict[str, str]:
    """The line that goes on with the run that wrote a checkpoint."""
    config = Path(path).with_name("config.yaml")
    return {"resume": f"plsc-mae {phase} --config {config if config.is_file() else 'FILE'} --resume {path}"}


def _heads(flag: str, part: Sizes) -> str:
    """The flag for heads that the file does not tell."""
    return f" --{flag} N" if part["num_heads"] is None else ""


def _classifier(method: str, encoder: Sizes) -> str:
    """The options of a classifier of an encoder's sizes: a registered one if there is one, else with its sizes."""
    pattern, general = CLASSIFIERS[method]
    wanted = {name: encoder[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")}
    named = [pattern.format(size, encoder["patch_size"]) for size in SIZES]
    fitting = [name for name in named if name in VARIANTS and wanted.items() <= VARIANTS[name].arguments.items()]
    flags = f"--model {(fitting or [general])[0]}"
    if not fitting:
        flags += "".join(f" --{name} {'N' if value is None else value}" for name, value in wanted.items())
    height, width = (length * encoder["patch_size"] for length in encoder["grid"])
    if (height, width) != (224, 224):
        flags += f" --input_size {height}" + (f" {width}" if width != height else "")
    if method == "mae_priv":
        flags = f"--method mae_priv {flags}{' --use_cls_token' if encoder['class_token'] else ' --global_pool'}"
    return flags
