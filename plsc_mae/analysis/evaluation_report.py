"""Tables and charts of an evaluation: per class, per label, per number (a target of a regression), per corruption.

Notation: n images, K classes, labels or numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.classification import Calibration, calibration, class_scores, percent
from plsc_mae.analysis.confusion import Doubles, confusion_matrix
from plsc_mae.analysis.corruption import SEVERITIES, corruption_errors
from plsc_mae.analysis.fonts import drawable_names, text_style
from plsc_mae.analysis.label_metrics import label_average_precisions, label_f1, target_errors

COUNTED_CLASSES = 10  # largest number of rows of a confusion matrix that is drawn with its numbers
NAMED_BARS = 30  # largest number of bars, rows or columns that are drawn with their names
_ROOM = 1.13  # for the value beside the longest bar
NAME_LENGTH = 24  # characters of a name in a chart
UPRIGHT_CHARACTERS = 24  # of all names below a heatmap, which are upright if they are longer in all
SCATTERED = 4  # largest number of targets of a regression that are drawn
CLASSES, LABELS, NUMBERS, CORRUPTIONS = "classes.csv", "labels.csv", "numbers.csv", "corruptions.csv"
INDEX = "index"  # last column of the tables of classes, labels and numbers; charts refer to its values
Values = npt.NDArray[np.float32]
Table = list[list[object]]  # the first row has the names of the columns


class Chart(Protocol):
    """A chart in the picture of an evaluation."""

    def draw(self, axes: Any) -> None:
        """Draw into the axes of a Matplotlib figure."""


class Report(NamedTuple):
    """Tables of an evaluation by file name, and its charts."""

    tables: dict[str, Table]
    charts: list[Chart]


class _Ticks(NamedTuple):
    """Names at the ticks of an axis."""

    names: Sequence[str]  # the names; empty if there are too many to show
    # text for the end of the axis label, which refers to the table, with a leading
    # space; "" if all names are shown in full
    note: str


def _ticks(names: Sequence[str], table: str, indices: Sequence[int] | None = None) -> _Ticks:
    """Return the ticks of an axis; long names are shortened, and names that no font can draw become numbers such as #3.

    `indices` are the values of the column `INDEX` of `table` for the names; None counts from 0.
    """
    if len(names) > NAMED_BARS:
        return _Ticks((), f" (index in {table})")
    indices = range(len(names)) if indices is None else indices
    shown = [
        name if len(name) <= NAME_LENGTH else f"#{i} {name[: NAME_LENGTH - 7]}..."
        for i, name in zip(indices, drawable_names(names, indices), strict=True)
    ]
    numbered = any(new != old and new.startswith("#") for new, old in zip(shown, names, strict=True))
    return _Ticks(shown, f" (#: index in {table})" if numbered else "")


class Heatmap(NamedTuple):
    """Heatmap of values [rows, columns] in percent; `table` is the file that lists the names of all rows.

    Up to COUNTED_CLASSES rows, the `counts` [rows, columns] are written into the cells.
    """

    title: str
    values: Doubles
    rows: Sequence[str]
    columns: Sequence[str]
    labels: tuple[str, str]  # of the vertical and of the horizontal axis
    table: str
    counts: npt.NDArray[np.int64] | None = None

    def draw(self, axes: Any) -> None:
        """Draw the values as colors, from 0 (light) to 100 (dark)."""
        image = axes.imshow(self.values, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        axes.figure.colorbar(image, ax=axes).ax.set_title("%")  # a label beside it would touch the next chart
        if self.counts is not None and len(self.counts) <= COUNTED_CLASSES:
            for (row, column), count in np.ndenumerate(self.counts):
                color = "white" if self.values[row, column] > 50 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color)
        axes.set_title(self.title)
        rows, columns = _ticks(self.rows, self.table), _ticks(self.columns, self.table)
        axes.set_ylabel(self.labels[0] + rows.note)
        axes.set_xlabel(self.labels[1] + columns.note)
        if rows.names:
            axes.set_yticks(range(len(rows.names)), rows.names, **text_style(rows.names))
        if columns.names:
            rotation = 90 if sum(map(len, columns.names)) > UPRIGHT_CHARACTERS else 0
            axes.set_xticks(range(len(columns.names)), columns.names, rotation=rotation, **text_style(columns.names))


class Bars(NamedTuple):
    """Bars of values in percent, without NaNs; `table` is the file that lists all names."""

    title: str
    names: Sequence[str]
    values: Doubles
    table: str

    def draw(self, axes: Any) -> None:
        """Draw a horizontal bar per value: up to NAMED_BARS from the top, as in a Heatmap, with names and values.

        More bars are sorted by their value.
        """
        order = np.flatnonzero(np.isfinite(self.values))[::-1]  # bars are drawn from the bottom
        if len(order) > NAMED_BARS:
            order = order[np.argsort(self.values[order], kind="stable")]
        bars = axes.barh(range(len(order)), self.values[order])
        axes.set_xlim(0, _ROOM * max(100.0, *self.values[order]) if len(order) else 100.0)
        axes.set_title(self.title)
        axes.set_xlabel("%")
        if len(order) > NAMED_BARS:
            axes.set_yticks([])
            zeros = np.count_nonzero(self.values[order] == 0)
            axes.set_ylabel(f"{len(order)} values{f', {zeros} of them 0' if zeros else ''}, by name in {self.table}")
            return
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
        names, note = _ticks([self.names[i] for i in order], self.table, order.tolist())
        axes.set_ylabel(note.strip(" ()"))
        axes.set_yticks(range(len(order)), names, **text_style(names))


class Reliability(NamedTuple):
    """Reliability diagram: accuracy by confidence."""

    found: Calibration

    def draw(self, axes: Any) -> None:
        """Draw the accuracy of every bin with images as a bar, or as 0, and the line of perfect calibration."""
        bins = len(self.found.images)
        middles = 100 * (np.arange(bins) + 0.5) / bins
        bars = axes.bar(middles, np.nan_to_num(self.found.accuracy), width=90 / bins)
        axes.bar_label(bars, ["0" if value == 0 else "" for value in self.found.accuracy], padding=1, fontsize="small")
        axes.plot([0, 100], [0, 100], color="gray", linestyle="--")
        axes.set_title(f"calibration error {self.found.error:.2f} %")
        axes.set_xlabel("confidence in %")
        axes.set_ylabel("accuracy in %")


class Scatter(NamedTuple):
    """Predicted against true values of a regression."""

    title: str
    truth: Values
    predicted: Values

    def draw(self, axes: Any) -> None:
        """Draw a point per image with a known value, and the line of perfect predictions."""
        known = np.isfinite(self.truth)
        ends = [float(self.truth[known].min()), float(self.truth[known].max())]
        axes.scatter(self.truth[known], self.predicted[known], s=6)
        axes.plot(ends, ends, color="gray", linestyle="--")
        axes.set_title(self.title, **text_style([self.title]))
        axes.set_xlabel("truth")
        axes.set_ylabel("prediction")


def class_report(logits: Values, labels: npt.NDArray[np.int64], names: Sequence[str]) -> Report:
    """Return a report on a classifier, from its logits [n, K] and the true class numbers [n].

    It has the scores of each class and the confusion matrix as tables and charts, and a chart of the calibration.

    Raises:
        ValueError: a class number is not below K.
    """
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(names))
    scores = class_scores(confusion)
    table: Table = [["class", "images", "accuracy", "precision", "f1", INDEX]]
    table += [
        [name, int(scores.images[i]), *map(_cell, (scores.recall[i], scores.precision[i], scores.f1[i])), i]
        for i, name in enumerate(names)
    ]
    matrix: Table = [
        ["true/predicted", *names],
        *([name, *row] for name, row in zip(names, confusion.tolist(), strict=True)),
    ]
    shares = np.stack([percent(row, np.full(len(row), row.sum())) for row in confusion])
    charts: list[Chart] = [
        Heatmap(
            "confusion matrix: share of each true class",
            np.nan_to_num(shares),
            names,
            names,
            ("true class", "predicted class"),
            CLASSES,
            confusion,
        ),
        Bars("accuracy by class", names, scores.recall, CLASSES),
        Reliability(calibration(logits, labels)),
    ]
    return Report({CLASSES: table, "confusion.csv": matrix}, charts)


def label_report(logits: Values, targets: Values, names: Sequence[str]) -> Report:
    """Return a report on multi-label predictions: counts, average precision and F1 per label.

    `logits` are [n, K], `targets` 0, 1 or NaN (unknown), [n, K].
    """
    precisions, f1 = label_average_precisions(logits, targets), label_f1(logits, targets)
    table: Table = [["label", "positive", "negative", "unknown", "average_precision", "f1", INDEX]]
    for i, name in enumerate(names):
        counts = [int(each.sum()) for each in (targets[:, i] > 0.5, targets[:, i] <= 0.5, np.isnan(targets[:, i]))]
        table.append([name, *counts, _cell(precisions[i]), _cell(f1[i]), i])
    charts: list[Chart] = [
        Bars(title, names, values, LABELS) for title, values in (("average precision", precisions), ("F1", f1))
    ]
    return Report({LABELS: table}, charts)


def number_report(predicted: Values, targets: Values, names: Sequence[str]) -> Report:
    """Return a report on a regression: the errors of each number, and scatter plots of the first few.

    `predicted` and `targets` are [n, K]; a target can be NaN (unknown).
    """
    absolute, rooted, explained = target_errors(predicted, targets)
    table: Table = [["number", "images", "mean_abs_error", "rmse", "r2", INDEX]]
    table += [
        [name, int(np.isfinite(targets[:, i]).sum()), *map(_cell, (absolute[i], rooted[i], explained[i])), i]
        for i, name in enumerate(names)
    ]
    drawn = [i for i in range(len(names)) if np.isfinite(targets[:, i]).any()][:SCATTERED]
    charts: list[Chart] = []
    for i, title in zip(drawn, drawable_names([names[i] for i in drawn], drawn), strict=True):
        shown = f"{title} (index in {NUMBERS})" if title == f"#{i}" else title
        charts.append(Scatter(shown, targets[:, i], predicted[:, i]))
    return Report({NUMBERS: table}, charts)


def corruption_report(errors: Mapping[str, Sequence[float]]) -> Report:
    """Return a report on top-1 errors in percent by corruption and severity, with the errors relative to AlexNet's."""
    relative = corruption_errors(errors)
    table: Table = [["corruption", *(f"error_{severity}" for severity in SEVERITIES), "error", "corruption_error"]]
    table += [
        [name, *map(_cell, values), _cell(float(np.mean(values))), _cell(relative.get(name, float("nan")))]
        for name, values in errors.items()
    ]
    values = np.array(list(errors.values()))
    charts: list[Chart] = [
        Heatmap(
            "top-1 error", values, list(errors), list(map(str, SEVERITIES)), ("corruption", "severity"), CORRUPTIONS
        ),
    ]
    if relative:
        charts.append(Bars("corruption error", list(relative), np.array(list(relative.values())), CORRUPTIONS))
    return Report({CORRUPTIONS: table}, charts)


def _cell(value: float) -> float | str:
    """Return a value for a table: rounded to 6 decimals, or "" for NaN."""
    return "" if np.isnan(value) else round(float(value), 6)
