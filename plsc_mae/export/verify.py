"""Verification of an export: its example runs in the target, and its outputs are compared with the network's."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc_mae.errors import CheckpointError
from plsc_mae.export.content import Array, Content
from plsc_mae.export.example import NAME
from plsc_mae.export.targets.base import Target
from plsc_mae.runtime import inherited_environment

BATCHES = (1, 3)
NOT_IMPORTED = 3  # exit code of RUN if a package is missing
# Runs example.py on the batches of a .npz file, and writes the outputs to another one.
RUN = f"""
import runpy, sys
import numpy as np
example, source, target = sys.argv[1:]
try:
    code = runpy.run_path(example)
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit({NOT_IMPORTED})
model, given, outputs = code["load"](), dict(np.load(source)), {{}}
for batch in sorted({{name.partition("/")[0] for name in given}}):
    inputs = [given[name] for name in sorted(given) if name.startswith(batch + "/")]
    outputs |= {{batch + "/" + name: value for name, value in code["run"](model, *inputs).items()}}
np.savez(target, **outputs)
"""


class Verdict(NamedTuple):
    """The result of a verification."""

    # largest absolute difference of every output; empty if the outputs were not compared
    differences: Mapping[str, float]
    # largest relative difference of all outputs: the difference divided by the largest expected magnitude of the
    # output, which counts as at least 1. It is 0 if the outputs were not compared.
    relative: float
    obstacle: str = ""  # reason why the outputs were not compared; "" if they were

    def __str__(self) -> str:
        if self.obstacle:
            return f"not verified: {self.obstacle}"
        each = ", ".join(f"{name} {value:.2g}" for name, value in self.differences.items())
        return f"verified: largest difference {each}"


def verify(target: Target, content: Content, folder: Path, tolerance: float) -> Verdict:
    """Run the example of an export on random inputs in two batch sizes and compare its outputs with the network's.

    If a package of the target is missing or cannot be imported, nothing is compared; the verdict names the package.

    Raises:
        CheckpointError: the example fails, or an output has another shape or differs by more than `tolerance`.
    """
    for package in target.packages:
        if importlib.util.find_spec(package) is None:
            return Verdict({}, 0.0, f"{package} is not installed here ({target.install})")
    batches = [content.sample(batch, seed=batch) for batch in BATCHES]
    found = _run_here(target, folder, batches) if target.in_process else _run_in_process(target, folder, batches)
    if isinstance(found, str):
        return Verdict({}, 0.0, found)
    differences: dict[str, float] = {}
    relative = 0.0
    for inputs, outputs in zip(batches, found, strict=True):
        for name, value in target.expected(content, inputs).items():
            if outputs[name].shape != value.shape:
                raise CheckpointError(
                    f"{target.title} returns {name} of shape {list(outputs[name].shape)}, the network "
                    f"{list(value.shape)}; the export is not written"
                )
            difference = float(np.abs(outputs[name].astype("float64") - value.astype("float64")).max())
            differences[name] = max(differences.get(name, 0.0), difference)
            relative = max(relative, difference / max(1.0, float(np.abs(value.astype("float64")).max())))
    verdict = Verdict(differences, relative)
    if not relative <= tolerance:
        each = ", ".join(f"{name} {value:.3g}" for name, value in differences.items())
        raise CheckpointError(
            f"the outputs in {target.title} differ by {each}, relatively {relative:.2g}, more than --tolerance "
            f"{tolerance:g}; the export is not written (--no_verify writes it unchecked)"
        )
    return verdict


def _run_here(target: Target, folder: Path, batches: Sequence[Sequence[Array]]) -> list[dict[str, Array]]:
    try:
        code = runpy.run_path(str(folder / NAME))
        model = code["load"]()
        return [code["run"](model, *inputs) for inputs in batches]
    except Exception as error:  # Paddle's errors have many types
        raise _cannot_run(target, type(error).__name__, str(error)) from error


def _cannot_run(target: Target, how: str, text: str) -> CheckpointError:
    """Return the error for an example that fails; the message has the last line of `text`."""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
    return CheckpointError(
        f"the exported network does not run in {target.title} ({how}): {last}; the export is not written (--no_verify "
        "writes it unchecked)"
    )


def _run_in_process(target: Target, folder: Path, batches: Sequence[Sequence[Array]]) -> list[dict[str, Array]] | str:
    """Run the example in a process of its own; return the outputs of every batch, or the reason for a failed import."""
    with tempfile.TemporaryDirectory() as exchange:
        source, results = Path(exchange) / "inputs.npz", Path(exchange) / "outputs.npz"
        given = {f"{i}/{j}": array for i, inputs in enumerate(batches) for j, array in enumerate(inputs)}
        np.savez(source, **given)  # type: ignore[arg-type]
        words = [sys.executable, "-c", RUN, str(folder / NAME), str(source), str(results)]
        done = subprocess.run(words, capture_output=True, text=True, env=inherited_environment(), check=False)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if done.returncode == NOT_IMPORTED:
            return f"{' or '.join(target.packages)} cannot be imported here: {lines[-1]} ({target.install})"
        if done.returncode:
            raise _cannot_run(target, f"exit code {done.returncode}", done.stderr)
        with np.load(results) as stored:
            outputs = {name: stored[name] for name in stored.files}
    return [
        {name.partition("/")[2]: value for name, value in outputs.items() if name.startswith(f"{i}/")}
        for i in range(len(batches))
    ]
