"""`plsc-mae runs`: overlays the curves of several runs, and prints their final numbers and differing options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from plsc_mae.config.runs import RunsConfig
from plsc_mae.methods.contract import sizes_of_model
from plsc_mae.models.registry import VARIANTS
from plsc_mae.report import sections
from plsc_mae.report.charts import Curve, line_chart
from plsc_mae.report.page import figure, page, paragraph, table, write_page
from plsc_mae.report.published import compare_published, published_logs
from plsc_mae.report.run_folder import RunFolder, is_number, read_run
from plsc_mae.report.verdict import judge
from plsc_mae.wording import counted

# Options that differ between any two runs, or do not matter for results.
PLACES = ("output_dir", "log_dir", "resume", "auto_resume", "overwrite")
SIZES = ("embed_dim", "depth", "num_heads", "patch_size")  # of an encoder, shown in one row
ENCODER, MODEL = "encoder", "model"


def run(config: RunsConfig) -> None:
    """Write the HTML file, and print final numbers, differing options, comparisons with published logs, and the path.

    Raises:
        DataError: a folder is not that of a run, or the file cannot be written.
    """
    runs = [read_run(Path(folder)) for folder in config.run_dirs]
    names = _names(config.run_dirs)
    numbers, differing = _final_numbers(runs), _differing_options(runs)
    sections_ = (
        ("Curves", _curves(runs, names)),
        ("Final numbers", table(("", *names), numbers)),
        ("Differing options", table(("", *names), differing) if differing else paragraph("None.")),
        ("Published logs", _published(runs, names)),
    )
    write_page(Path(config.save_path), page("Runs", ", ".join(names), sections_))
    for title, rows in (("final numbers", numbers), ("differing options", differing)):
        print("\n".join(_aligned([(title, *names), *rows])) if rows else f"{title}: none")
        print()
    for found, name in zip(runs, names, strict=True):
        for comparison in compare_published(found):
            print(f"{name}: {comparison.text}")
    print(config.save_path)


def _names(folders: Sequence[str]) -> list[str]:
    """Return a name per run: the last parts of its path, as few as make all names different."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part) for part in parts]


def _curves(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return charts of the losses and of the metrics in `sections.CHARTS` as HTML, with a curve per run."""
    losses = dict.fromkeys(judge(found).loss for found in runs)
    metrics = [*losses, *(name for _, group in sections.CHARTS for name in group if name not in losses)]
    drawn = []
    for metric in metrics:
        curves = [Curve(name, *found.series(metric)) for found, name in zip(runs, names, strict=True)]
        if any(curve.y for curve in curves):
            drawn.append(figure(metric, line_chart(curves, x_label=sections.UPDATE)))
    return f'<div class="charts">{"".join(drawn)}</div>'


def _final_numbers(runs: Sequence[RunFolder]) -> list[Sequence[Any]]:
    """Return rows (metric, newest finite value in log.txt of every run), with None for a run without one.

    A metric that should rise has a second row, with its best values. If any run recorded losses of trivial predictors,
    the last row has the lowest one of every run.
    """
    names = dict.fromkeys(name for found in runs for record in found.epochs for name in record if name != "run")
    rows: list[Sequence[Any]] = []
    for name in names:
        seen = [[record[name] for record in found.epochs if is_number(record.get(name))] for found in runs]
        rows.append((name, *(values[-1] if values else None for values in seen)))
        if sections.rises(name):
            rows.append((f"best {name}", *(max(values, default=None) for values in seen)))
    verdicts = [judge(found) for found in runs]
    if any(verdict.levels for verdict in verdicts):
        rows.append(("best trivial predictor", *(min(v.levels.values(), default=None) for v in verdicts)))
    return rows


def _differing_options(runs: Sequence[RunFolder]) -> list[Sequence[Any]]:
    """Return rows (option, value of every run) of the options that differ, apart from PLACES.

    The encoders of differing models have a row even if they are equal, as in a pre-training and its fine-tuning.
    """
    options = [_with_encoder(found.options) for found in runs]
    names = dict.fromkeys(name for given in options for name in given if name not in PLACES)
    rows: list[Sequence[Any]] = []
    for name in names:
        values = [_text(given.get(name, "-")) for given in options]
        models = {given.get(MODEL) for given in options} if name == ENCODER else ()
        if len(set(values)) > 1 or len(models) > 1:
            rows.append((name, *values))
    return rows


def _with_encoder(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with one entry for the sizes of the encoder, those of --model unless the run has changed them."""
    model = options.get(MODEL)
    if model not in VARIANTS:
        return dict(options)
    width, depth, heads, patch = (options.get(name) or sizes_of_model(model)[name] for name in SIZES)
    others = {name: value for name, value in options.items() if name not in SIZES}
    return {ENCODER: f"{width} wide, {counted(depth, 'block')}, {counted(heads, 'head')}, patch {patch}"} | others


def _published(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return the comparisons of every run with the published logs of its recipe, as HTML."""
    parts = [
        f"<h3>{escape(name)}</h3>{sections.published(found)}"
        for found, name in zip(runs, names, strict=True)
        if compare_published(found)
    ]
    if parts:
        return "".join(parts)
    recipes = ", ".join(log.recipe for log in published_logs())
    return paragraph(f"No run follows a recipe whose log is published: {recipes}.", "sub")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [[f"{x:.4g}" if isinstance(x, float) else "-" if x is None else str(x) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
