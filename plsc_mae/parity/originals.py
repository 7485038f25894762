"""Original implementations of our networks, and the separate process that runs their code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plsc_mae
from plsc_mae import weights
from plsc_mae.errors import ConfigError
from plsc_mae.parity.cases import AnyCase, Case
from plsc_mae.parity.references.exchange import Message

HUGGINGFACE = "huggingface"


@dataclass(frozen=True)
class Original:
    """Original implementation of one of our networks."""

    title: str  # name of the project
    program: str  # name of the program in `parity.references` that runs the project's code
    dialect: str  # dialect of the project's weights
    marker: str  # file that identifies a checkout of the project; "" if the project is an installed package
    case: type[Case[Any]]  # class of the cases that the project may be able to compute
    # returns the settings from which the program builds the network of a case
    settings: Callable[[Any], dict[str, Any]]
    # returns a clause that continues the name of the network, such as "cannot be built
    # by ..."; "" if the project can build the network of a case
    unsupported_reason: Callable[[Any], str]


def find_original(reference: str, originals: Sequence[Original]) -> Original:
    """Return the original implementation that `--reference` names.

    Raises:
        ConfigError: `reference` is neither `huggingface` nor a checkout of a known project.
    """
    for original in originals:
        if reference == original.program if not original.marker else (Path(reference) / original.marker).is_file():
            return original
    known = ", ".join(f"{original.title} ({original.marker})" for original in originals if original.marker)
    raise ConfigError(
        f"--reference {reference}: expected {HUGGINGFACE} or the folder of a checkout of one of these projects "
        f"(with the file that identifies it): {known}"
    )


def unsupported_reason(original: Original, case: AnyCase) -> str:
    """Return the reason why an original implementation cannot compute a case; "" if it can."""
    if not isinstance(case, original.case):
        return f"{original.title} has no counterpart of {case.name}"
    reason = original.unsupported_reason(case)
    return reason and f"{case.name} {reason}"


def run_original(original: Original, case: AnyCase, rates: Sequence[float], reference: str, python: str) -> Message:
    """Run the original code with the weights and the batch of a case.

    Args:
        original: the original implementation.
        case: the network, its weights and a batch.
        rates: learning rate of each update.
        reference: folder of the original's checkout; ignored if the original is an installed package.
        python: interpreter that runs the original code; "" for the current one.

    Returns:
        Layers, gradients, losses and trained weights, see `references.exchange.Message`.

    Raises:
        ConfigError: the interpreter does not start, or the original code fails.
    """
    config = case.config
    optimizer = {"rates": list(rates), "betas": config.opt_betas, "eps": config.opt_eps}
    settings = {**original.settings(case), **optimizer, "weight_decay": config.weight_decay}
    groups = {"weights": weights.export(case.model, original.dialect), "batch": dict(case.batch)}
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        request, answer = Path(folder) / "request.npz", Path(folder) / "answer.npz"
        Message(settings, groups).write(request)
        program = [python or sys.executable, "-m", f"plsc_mae.parity.references.{original.program}"]
        checkout = [reference] if original.marker else []
        _run([*program, str(request), str(answer), *checkout], original)
        return Message.read(answer)


def _run(command: list[str], original: Original) -> None:
    paths = [str(Path(plsc_mae.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ConfigError(
            f"--python {command[0]}: {error.strerror}; expected an interpreter that has torch installed"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"the code of {original.title} failed in the interpreter {command[0]}: {last}; use --python to name one "
            "with torch and timm or transformers (see docs/reference/parity.md)"
        )
