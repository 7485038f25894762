"""The last lines of a run: commands for its result, complete and ready to copy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from paddle import nn

from plsc_mae import console
from plsc_mae.commands import usage_lines
from plsc_mae.config import ClassifyConfig, PretrainConfig
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.train.announcements import IN_MEMORY
from plsc_mae.train.checkpoint.folder import config_path

PLACEHOLDER = "DIR"  # a folder that the reader chooses, as in the lines of `weights inspect`


def after_pretraining(config: PretrainConfig, network: nn.Layer, checkpoint: Path, *, is_labeled: bool) -> None:
    """Print the commands that examine and use a pre-trained network.

    Args:
        config: options of the run.
        network: the trained network, whole.
        checkpoint: its last checkpoint.
        is_labeled: whether its training images have classes, so that a classifier can be trained on them.
    """
    data = PLACEHOLDER if config.data_path.startswith(IN_MEMORY) else shlex.quote(config.data_path)
    file, folder = shlex.quote(str(checkpoint)), Path(config.output_dir)
    steps = {"learning": f"plsc-mae report {shlex.quote(str(folder))}"}
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, VisionTransformer):
        pictures = shlex.quote(str(folder / "reconstruction"))
        steps["pictures"] = f"plsc-mae reconstruct --model_path {file} --img_path {data} --save_path {pictures}"
        lines = usage_lines.training(file, config.method, usage_lines.sizes_of(encoder))
        if "finetune" in lines:
            tuned = shlex.quote(str(folder.with_name(f"{folder.name}-finetune")))
            steps["classifier"] = f"{lines['finetune']} --output_dir {tuned}"
        if is_labeled:
            steps["classifier"] = steps.get("classifier", "").replace(
                f"--data_path {PLACEHOLDER}", f"--data_path {data}"
            )
    steps["others"] = f"plsc-mae weights inspect {file}"
    _print(steps)


def after_classification(config: ClassifyConfig, checkpoint: Path, run: str) -> None:
    """Print the commands that use a trained classifier.

    Args:
        config: options of the run.
        checkpoint: its best checkpoint, or its last one if it was not evaluated.
        run: id of the run.
    """
    file, options = shlex.quote(str(checkpoint)), shlex.quote(str(config_path(config.output_dir, run)))
    folder = shlex.quote(str(Path(config.output_dir) / "export"))
    _print(
        {
            "predict": f"plsc-mae predict --model_path {file} --img_path {PLACEHOLDER}",
            "evaluate": f"plsc-mae {config.phase} --config {options} --eval --resume {file}",
            "deploy": f"plsc-mae export --target inference --model_path {file} --save_path {folder}",
            "others": f"plsc-mae weights inspect {file}",
        }
    )


def _print(steps: Mapping[str, str]) -> None:
    """Print each purpose with its command, which starts with the program as this process was started."""
    program = console.program()
    commands = {use: line.replace(console.PROGRAM, program, 1) for use, line in steps.items()}
    width = max(map(len, commands))
    lines = [f"{console.COMMAND_INDENT}{use:<{width}}  {line}" for use, line in commands.items()]
    console.report("\n".join(["next:", *lines]), {"event": "next", "commands": commands})
