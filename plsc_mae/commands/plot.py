"""`plsc-mae plot`: draws curves of a run from its train.jsonl."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from plsc_mae.config.schema import suggest
from plsc_mae.config.tools import PlotConfig
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.names import escape_name

COLORS = ("tab:blue", "tab:green", "tab:red", "tab:purple")  # the learning rate is orange


def run(config: PlotConfig) -> None:
    """Draw the loss or other metrics over optimizer steps, with the learning rate on a second axis.

    Raises:
        DataError: the folder has no train.jsonl, or the picture cannot be written.
        ConfigError: the log lacks a metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log = Path(config.run_dir) / "train.jsonl"
    if not log.is_file():
        raise DataError(f"{log} does not exist; expected the output folder of a training run")
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps, names = [record["step"] for record in records], config.metrics
    for name in names:
        if any(name not in record for record in records):
            known = ", ".join(records[-1])
            raise ConfigError(f"--metrics {name} is not in {log}{suggest(name, records[-1])}; it has {known}")
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for name, color in zip(names, itertools.cycle(COLORS)):
        axes.plot(steps, [record[name] for record in records], color=color, label=name)
    title = escape_name(Path(config.run_dir).name)
    axes.set(xlabel="optimizer step", ylabel=names[0], title=title, ylim=(0, None))
    if len(names) > 1:
        axes.legend()
        axes.set_ylabel("")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [record["lr"] for record in records], color="tab:orange", alpha=0.5)
    rates.set_ylabel("learning rate", color="tab:orange")
    path = Path(config.save_path) if config.save_path else Path(config.run_dir) / f"{names[0]}.png"
    figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    except ValueError as error:  # the suffix selects the format
        raise DataError(f"cannot write {path}: {error}; end --save_path in .png") from None
    print(path)
