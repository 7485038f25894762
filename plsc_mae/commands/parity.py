"""`plsc-mae parity`: compares a network with an independent oracle and with the original code."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

import plsc_mae
from plsc_mae.config.parity import ParityConfig
from plsc_mae.config.schema import options
from plsc_mae.errors import ConfigError
from plsc_mae.parallel.world import World
from plsc_mae.parity.build_cases import open_cases
from plsc_mae.parity.checks import against_oracle, against_original
from plsc_mae.parity.compare import Comparison, ParityError
from plsc_mae.parity.networks import originals
from plsc_mae.parity.originals import find_original, unsupported_reason
from plsc_mae.parity.report import Report, comparison_lines
from plsc_mae.train.precision import Precision, choose_precision


def run(config: ParityConfig) -> None:
    """Run the comparisons, print each when it is done and, with --save_path, write the report.

    Raises:
        ParityError: a difference exceeds the tolerance.
        CheckpointError: the checkpoint cannot be used.
        ConfigError: an option cannot be used, or the original lacks the network or does not run.
        DataError: the report cannot be written.
    """
    world = World(config.device)
    precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu)
    comparisons = []
    for comparison in _comparisons(config, precision):
        print("\n".join(comparison_lines(comparison)), flush=True)
        comparisons.append(comparison)
    ran = {comparison.reference for comparison in comparisons if comparison.sections}
    absent = [original.title for original in originals() if original.title not in ran]
    report = Report(_circumstances(config, precision, world), comparisons, absent)
    for file in report.save(Path(config.save_path)) if config.save_path else ():
        print(file)
    if failures := report.failures():
        raise ParityError("; ".join(failures))
    print("parity: all within tolerance")


def _comparisons(config: ParityConfig, precision: Precision) -> Iterator[Comparison]:
    """Yield the comparisons of each network: with the oracle, then with the original, which changes the weights."""
    original = find_original(config.reference, originals()) if config.reference else None
    for case in open_cases(config, precision):
        reason = unsupported_reason(original, case) if original else ""
        if reason and (config.checkpoint or len(config.model) == 1):
            raise ConfigError(f"--reference {config.reference}: {reason}")
        yield against_oracle(case, config.steps, config.tolerance, config.random or 0)
        if original is not None and reason:
            yield Comparison(case.name, original.title, remark=f"not compared: {reason}")
        elif original is not None:
            yield against_original(case, original, config.steps, config.tolerance, config.reference, config.python)


def _circumstances(config: ParityConfig, precision: Precision, world: World) -> dict[str, str]:
    device = paddle.device.cuda.get_device_name() if world.is_gpu else f"CPU, {platform.machine()}"
    weights = f"of {config.checkpoint}" if config.checkpoint else f"random, seed {config.random or 0}"
    return {
        "command": f"`{command_line(config)}`",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "weights": weights,
        "images": f"{config.batch_size}, of normal noise, seed {config.random or 0}",
        "device": device,
        "arithmetic": precision.note,
        "plsc_mae": plsc_mae.__version__,
        "Paddle": str(paddle.__version__),
        "NumPy": np.__version__,
        "Python": platform.python_version(),
    }


def command_line(config: ParityConfig) -> str:
    """Return the command line that repeats this comparison; options with their default values are omitted."""
    words = ["plsc-mae", "parity"]
    for item in options(ParityConfig):
        value = getattr(config, item.name)
        if value != item.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{item.name}", *([] if value is True else map(str, values))]
    return shlex.join(words)
