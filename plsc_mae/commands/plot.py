"""`plsc-mae plot`: draws curves of a run from its train.jsonl and log.txt."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from plsc_mae.analysis.fonts import drawable_names, text_style
from plsc_mae.analysis.health import EXTREMES
from plsc_mae.analysis.trivial import DESCRIPTIONS
from plsc_mae.config.runs import PlotConfig
from plsc_mae.config.schema import suggest
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.files import MARK, result_replacement
from plsc_mae.names import escape_name
from plsc_mae.report.run_folder import Records, read_lines, read_trivial_losses
from plsc_mae.train.checkpoint.folder import TRIVIAL_LOSSES

_FORMATS = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "svg", "pdf", "ps", "eps")  # formats that can hold our mark
_SOFTWARE = 305  # tag of TIFF and EXIF
COLORS = ("tab:blue", "tab:green", "tab:red", "tab:purple")  # the learning rate is orange


def run(config: PlotConfig) -> None:
    """Draw the loss or other metrics over optimizer steps, with the learning rate on a second axis.

    If the loss of pre-training is drawn, so are the losses of trivial predictors in trivial_losses.json. Metrics of the
    print intervals are read from train.jsonl, others, such as `knn_acc1`, from log.txt.

    Raises:
        DataError: the folder has no train.jsonl, or the picture cannot be written or has an unknown format.
        ConfigError: both logs lack numbers of a metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder, names = Path(config.run_dir), config.metrics
    log = folder / "train.jsonl"
    if not log.is_file():
        raise DataError(f"{log} does not exist; expected the output folder of a training run")
    intervals, epochs = read_lines(log), read_lines(folder / "log.txt")
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for name, color in zip(names, itertools.cycle(COLORS)):
        records = _records_with(name, intervals, epochs, log)
        marker = "o" if records[0] not in intervals else None  # few points, at most one per epoch
        x, y = [record["step"] for record in records], [record[name] for record in records]
        axes.plot(x, y, color=color, label=_label(name), marker=marker, markersize=3)
    _draw_levels(axes, read_trivial_losses(folder / TRIVIAL_LOSSES), names)
    lowest = min(record[name] for name in names for record in _records_with(name, intervals, epochs, log))
    axes.set(
        xlabel="optimizer step",
        ylabel=_label(names[0]),
        ylim=(0 if lowest >= 0 else None, None),
    )
    (title,) = drawable_names([escape_name(folder.name)])
    axes.set_title(title, **text_style([title]))
    if len(axes.get_lines()) > 1:
        axes.legend(fontsize="small")
    if len(names) > 1:
        axes.set_ylabel("")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(
        [record["step"] for record in intervals],
        [record["lr"] for record in intervals],
        color="tab:orange",
        alpha=0.5,
    )
    rates.set_ylabel("learning rate", color="tab:orange")
    axes.set_zorder(rates.get_zorder() + 1)  # the metrics lie above the learning rate
    axes.patch.set_visible(False)
    figure.tight_layout()
    print(_save(figure, config, folder))
    plt.close(figure)


def _draw_levels(axes: Any, trivial: Mapping[str, Any], names: Sequence[str]) -> None:
    """Draw the losses of trivial predictors as gray lines, if `names` has the loss that they belong to.

    Losses above twice the top of the axes are left out.
    """
    losses = trivial.get("losses", {}) if trivial.get("loss") in names else {}
    top = 2 * axes.get_ylim()[1]
    shown = sorted((level, name) for name, level in losses.items() if level <= top)
    for (level, name), style in zip(shown, itertools.cycle(("--", ":", "-."))):
        text = f"{DESCRIPTIONS.get(name, name)}: {level:.4g}"
        axes.axhline(level, color="gray", linestyle=style, linewidth=1, label=text)


def _label(name: str) -> str:
    """Return a metric's name; for a statistic in EXTREMES, add its extreme values and their meaning in parentheses."""
    return f"{name} ({EXTREMES[name]})" if name in EXTREMES else name


def _records_with(name: str, intervals: Records, epochs: Records, log: Path) -> Records:
    """Return the records of the first log with numbers of a metric; raise ConfigError if neither has any."""
    for records in (intervals, epochs):
        if found := [record for record in records if isinstance(record.get(name), (int, float))]:
            return found
    known = list(dict.fromkeys(key for records in (intervals, epochs) for record in records[-1:] for key in record))
    known += [key for record in epochs for key in record if key not in known]
    listed = ", ".join(dict.fromkeys(known))
    what = "has no numbers" if name in known else "is not"
    hint = "" if name in known else suggest(name, known)
    raise ConfigError(f"--metrics {name} {what} in {log} or log.txt{hint}; they have {listed}")


def _save(figure: Any, config: PlotConfig, folder: Path) -> Path:
    path = Path(config.save_path) if config.save_path else folder / f"{config.metrics[0]}.png"
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in _FORMATS:
        raise DataError(
            f"--save_path {path}: unknown format; end --save_path in .png or another of {', '.join(_FORMATS)}"
        )
    try:
        with result_replacement(path) as temporary:
            figure.savefig(temporary, format=kind, **_marked(kind))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    except ValueError as error:  # the suffix selects the format
        raise DataError(f"cannot write {path}: {error}; end --save_path in .png") from None
    return path


def _marked(kind: str) -> dict[str, Any]:
    """Return the arguments of `savefig` by which a picture of the format `kind` is recognized as ours."""
    if kind in ("jpg", "jpeg"):
        return {"pil_kwargs": {"comment": MARK.encode()}}
    if kind in ("tif", "tiff"):
        return {"pil_kwargs": {"tiffinfo": {_SOFTWARE: MARK}}}
    if kind == "webp":
        exif = Image.Exif()
        exif[_SOFTWARE] = MARK
        return {"pil_kwargs": {"exif": exif}}
    return {"metadata": {"Software" if kind == "png" else "Creator": MARK}}
