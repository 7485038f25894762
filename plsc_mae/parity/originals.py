"""An original whose code computes a network of ours, and the process that runs it."""

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
    """Code of another project that computes one of our networks.

    Attributes:
        title: name of the project.
        program: the module that runs it, see `parity.references`.
        dialect: of its weights.
        marker: file that identifies a checkout of it; empty for an installed package.
        case: networks it may have.
        settings: returns the settings by which its program builds the network.
        obstacle: returns why it has no such network; empty if it has.
    """

    title: str
    program: str
    dialect: str
    marker: str
    case: type[Case[Any]]
    settings: Callable[[Any], dict[str, Any]]
    obstacle: Callable[[Any], str]


def find_original(reference: str, originals: Sequence[Original]) -> Original:
    """Return the original that `--reference` names.

    Raises:
        ConfigError: it is neither `huggingface` nor a checkout of a known original.
    """
    for original in originals:
        if reference == original.program if not original.marker else (Path(reference) / original.marker).is_file():
            return original
    known = ", ".join(f"{original.title} ({original.marker})" for original in originals if original.marker)
    raise ConfigError(f"--reference {reference} is no checkout of {known}; give its folder, or {HUGGINGFACE}")


def obstacle(original: Original, case: AnyCase) -> str:
    """Return why an original cannot compute a case; empty if it can."""
    if not isinstance(case, original.case):
        return f"{original.title} has no network like {case.name}"
    reason = original.obstacle(case)
    return reason and f"{case.name} {reason}"


def ask(original: Original, case: AnyCase, rates: Sequence[float], reference: str, python: str) -> Message:
    """Let the original compute the case, with the same weights, batch and learning rates.

    Raises:
        ConfigError: the interpreter does not start, or the original's code fails.
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
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"--python {command[0]}: {error.strerror}; name an interpreter that has torch") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"the code of {original.title} failed under {command[0]}: {last}; it needs an interpreter with torch and "
            "timm or transformers, see docs/parity.md"
        )
