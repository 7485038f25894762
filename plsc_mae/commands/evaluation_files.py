"""Files of an evaluation: metrics.json, tables and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plsc_mae.analysis.evaluation_report import Chart, Report, Table
from plsc_mae.commands.results import require_free
from plsc_mae.errors import DataError
from plsc_mae.files import MARK, result_replacement, write_csv
from plsc_mae.names import as_json

METRICS, PICTURE = "metrics.json", "evaluation.png"
# First cells of the tables, by which files of earlier evaluations are recognized.
SIGNS = {
    "classes.csv": "class,images,accuracy,",
    "confusion.csv": "true/predicted,",
    "labels.csv": "label,positive,negative,",
    "numbers.csv": "number,images,mean_abs_error,",
    "corruptions.csv": "corruption,error_1,",
}
_INCHES = 5.5  # side of a chart


def require_free_files(folder: Path) -> None:
    """Raise DataError if a result would replace a file that is not from an earlier evaluation."""
    require_free(folder / METRICS, folder / PICTURE)
    for name, sign in SIGNS.items():
        require_free(folder / name, signs=(sign,))


def save_evaluation(folder: Path, summary: Mapping[str, Any], report: Report) -> list[Path]:
    """Write the metrics, tables and charts of an evaluation and return the paths.

    Raises:
        DataError: a file cannot be written, or exists and is not from an earlier evaluation.
    """
    try:
        with result_replacement(folder / METRICS) as temporary:
            content = as_json({"origin": MARK, **summary}, indent=1)
            temporary.write_text(content + "\n", encoding="utf-8")
        for name, table in report.tables.items():
            _write_table(folder / name, table)
        written = [folder / name for name in (METRICS, *report.tables)]
        if report.charts:
            _draw(folder / PICTURE, report.charts)
            written.append(folder / PICTURE)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; choose another --save_path") from None
    return written


def _write_table(path: Path, table: Table) -> None:
    with result_replacement(path, (SIGNS[path.name],)) as temporary:
        write_csv(temporary, table)


def _draw(path: Path, charts: Sequence[Chart]) -> None:
    """Draw the charts side by side into one PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (_INCHES * len(charts), _INCHES)
    figure, axes = plt.subplots(1, len(charts), figsize=size, squeeze=False, layout="constrained")
    for place, chart in zip(axes[0], charts, strict=True):
        chart.draw(place)
    with result_replacement(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": MARK})
    plt.close(figure)
