"""The interface of a target: what it can hold, which files it gets, and how its outputs are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paddle
import yaml
from paddle import nn

from plsc_mae.errors import ConfigError
from plsc_mae.export.content import Array, Content, Part

MODEL = "model"  # stem of the file of a network


class Code(NamedTuple):
    """Python source that differs between the examples of targets, without the indentation of functions."""

    imports: str  # import statements
    load: str  # body of `load()`, which returns the network
    run: str  # body of `run(model, images, ...)`, which returns a dictionary of NumPy arrays


class Target(ABC):
    """A program or library that uses exported networks."""

    name: str  # name of the target, and of its module
    title: str  # its name in text
    parts: Sequence[Part]  # parts of a checkpoint that it can hold, in order of preference
    packages: Sequence[str]  # Python packages without which its example is not checked
    install: str  # command that installs them
    in_process: bool = False  # whether the check runs in this process instead of a separate one

    def missing_package(self) -> str:
        """Return a sentence if the export itself needs a package that is not installed, else ""."""
        return ""

    @abstractmethod
    def write(self, content: Content, folder: Path) -> None:
        """Write the network and its configuration.

        Raises:
            ConfigError: the target cannot represent the network.
            CheckpointError: the conversion fails, or a file of weights cannot be written.
            OSError: another file cannot be written.
        """

    @abstractmethod
    def code(self, content: Content) -> Code:
        """Return the code that loads the network from the folder FOLDER and runs it."""

    def expected(self, content: Content, inputs: Sequence[Array]) -> dict[str, Array]:
        """Compute the outputs, by name, that `run` of the example must return for `inputs`."""
        return dict(zip(content.outputs, traced_outputs(content.layer, inputs), strict=True))

    def remarks(self, content: Content) -> list[str]:
        """Return sentences for the user: deviations of the target's outputs from ours, and pitfalls of loading."""
        return []


def traced_outputs(layer: nn.Layer, inputs: Sequence[Array]) -> list[Array]:
    """Run a layer without gradients, and return its list of tensors as arrays."""
    with paddle.no_grad():
        return [output.numpy() for output in layer(*map(paddle.to_tensor, inputs))]


def write_yaml(path: Path, heading: str, content: Mapping[str, Any]) -> None:
    """Write plain data as YAML below `heading`, whose lines become comments."""
    text = yaml.safe_dump(dict(content), sort_keys=False, width=120, allow_unicode=True)
    path.write_text("".join(f"# {line}\n" for line in heading.splitlines()) + text, encoding="utf-8")


def refuse(target: Target, reason: str) -> ConfigError:
    """Return the error for a network that `target` cannot represent; it names the targets that take every network."""
    return ConfigError(
        f"{target.title} cannot represent this network: {reason}; use --target inference or --target onnx, which take "
        "every network"
    )
