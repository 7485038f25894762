"""`plsc-mae plot`: the loss curve of a run as a picture, drawn from its train.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from plsc_mae.config.tools import PlotConfig
from plsc_mae.errors import DataError


def run(config: PlotConfig) -> None:
    """Draw loss over optimizer steps, with the learning rate behind it.

    Raises:
        DataError: the folder has no log of a run, or the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log = Path(config.run_dir) / "train.jsonl"
    if not log.is_file():
        raise DataError(f"{log} does not exist; expected the output folder of a training run")
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    axes.plot(steps, [record["loss"] for record in records], color="tab:blue")
    axes.set(xlabel="optimizer step", ylabel="loss", title=Path(config.run_dir).name, ylim=(0, None))
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [record["lr"] for record in records], color="tab:orange", alpha=0.5)
    rates.set_ylabel("learning rate", color="tab:orange")
    path = Path(config.save_path) if config.save_path else Path(config.run_dir) / "loss.png"
    figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    except ValueError as error:  # the suffix decides the format
        raise DataError(f"cannot write {path}: {error}; end --save_path in .png") from None
    print(path)
