"""The command lines that accept a weight file, as `plsc-mae weights inspect` prints them for copying.

Each function with a `path` returns {use: command line}, for example {"knn": "plsc-mae knn --model_path ..."}; the path
is quoted for a shell.
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Mapping
from pathlib import Path

from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.methods import load_methods, load_recipe
from plsc_mae.methods.contract import DEFAULT_SIZE, Sizes
from plsc_mae.models.vit import VisionTransformer


def reconstruction(path: str, parts: Mapping[str, Sizes], flags: str = "") -> dict[str, str]:
    """Return the line that reconstructs images; `parts` has the sizes of encoder and decoder."""
    heads = _heads("num_heads", parts["encoder"]) + _heads("decoder_num_heads", parts.get("decoder", {}))
    return {"reconstruct": f"plsc-mae reconstruct --model_path {shlex.quote(path)} --img_path DIR{heads}{flags}"}


def training(path: str, method: str, encoder: Sizes, *, stores_sizes: bool = False) -> dict[str, str]:
    """Return the lines that train a classifier from an encoder by the recipes of `method`; {} without fine-tuning.

    The lines name the sizes in which the encoder differs from a registered network, unless `stores_sizes` is true for a
    file from which `loading.encoder_sizes` takes them.
    """
    if method not in FINETUNE:
        return {}
    start = f"{_classifier(method, encoder, stores_sizes)} --finetune {shlex.quote(path)} --data_path DIR"
    uses = {"finetune": f"plsc-mae finetune {start}"}
    return uses | {"linprobe": f"plsc-mae linprobe {start}"} if method in LINPROBE else uses


def evaluation(path: str, encoder: Sizes) -> dict[str, str]:
    """Return the lines of the commands that evaluate, draw or write the features of an encoder."""
    pool, heads = "" if encoder["class_token"] else " --pool mean", _heads("num_heads", encoder)
    return {
        "knn": f"plsc-mae knn --model_path {shlex.quote(path)} --data_path DIR{heads}",
        "explain": f"plsc-mae explain --model_path {shlex.quote(path)} --img_path DIR{pool}{heads}",
        "extract": f"plsc-mae extract --model_path {shlex.quote(path)} --data_path DIR --save_path features.npz{heads}",
        "segprobe": f"plsc-mae segprobe --model_path {shlex.quote(path)} --data_path DIR{heads}",
    }


def export(path: str, parts: Mapping[str, Sizes]) -> dict[str, str]:
    """Return the line that exports the default part of the file; `parts` has the sizes of the encoder and others."""
    heads = _heads("num_heads", parts["encoder"]) + _heads("decoder_num_heads", parts.get("decoder", {}))
    return {
        "export": f"plsc-mae export --target inference --model_path {shlex.quote(path)} --save_path exported{heads}"
    }


def prediction(path: str, encoder: Sizes, *, has_average: bool) -> dict[str, str]:
    """Return the lines that classify images with the weights and, if stored, with their moving average."""
    line = f"plsc-mae predict --model_path {shlex.quote(path)} --img_path DIR{_heads('num_heads', encoder)}"
    return {"predict": line} | ({"predict by model_ema": f"{line} --model_key model_ema"} if has_average else {})


def tokenization(path: str) -> dict[str, str]:
    """Return the line that pre-trains on the tokens of the tokenizer at `path`."""
    method = next(method for method in load_methods() if method.tokenizer_option)
    name, option = method.config_class.method, method.tokenizer_option
    return {"pretrain": f"plsc-mae pretrain --method {name} --{option} {shlex.quote(path)} --data_path DIR"}


def resumption(path: str, phase: str) -> dict[str, str]:
    """Return the line that resumes the run of a checkpoint."""
    config = Path(path).with_name("config.yaml")
    options = shlex.quote(str(config)) if config.is_file() else "FILE"
    return {"resume": f"plsc-mae {phase} --config {options} --resume {shlex.quote(path)}"}


def sizes_of(encoder: VisionTransformer) -> Sizes:
    """Return the sizes of an encoder in memory that the other functions read."""
    block = encoder.blocks[0]
    width, hidden = block.mlp.fc1.weight.shape
    return {
        "patch_size": encoder.patch_size,
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": hidden / width,
        "grid": encoder.grid,
        "class_token": encoder.cls_token is not None,
        "layer_scale": block.gamma_1 is not None,
    }


def _heads(flag: str, part: Sizes) -> str:
    """Return " --FLAG N", in which the user replaces N, if `part` has heads but their number is unknown; else ""."""
    return f" --{flag} N" if "num_heads" in part and part["num_heads"] is None else ""


def _classifier(method: str, encoder: Sizes, stores_sizes: bool) -> str:
    """Return the options of a classifier of the encoder's sizes: the nearest --model and flags for its differences."""
    recipe = load_recipe(method)
    options = recipe.size_options(encoder)
    height, width = (length * encoder["patch_size"] for length in encoder["grid"])
    if stores_sizes and len(options) > 1:  # the classifier takes them and, with them, the size of the images
        options, height, width = {"model": options["model"]}, DEFAULT_SIZE, DEFAULT_SIZE
    flags = " ".join(f"--{name} {'N' if value is None else value}" for name, value in options.items())
    if (height, width) != (DEFAULT_SIZE, DEFAULT_SIZE):
        flags += f" --input_size {height}" + (f" {width}" if width != height else "")
    means_method = any(fnmatch.fnmatch(recipe.base_model, pattern) for pattern in FINETUNE[method].models)
    return ("" if means_method else f"--method {method} ") + flags + recipe.flags(encoder)
