"""Sections of the report of one run as HTML; "" if the run has no data for a section."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from plsc_mae.analysis.class_counts import ClassCounts
from plsc_mae.analysis.health import EXTREMES
from plsc_mae.report.charts import Curve, line_chart
from plsc_mae.report.page import bullets, figure, folded, pairs, paragraph, picture, reference, table
from plsc_mae.report.published import compare_published
from plsc_mae.report.run_folder import Picture, RunFolder, is_number
from plsc_mae.report.verdict import ADVICE_PAGES, judge, missed_classes
from plsc_mae.wording import counted, ordinal

UPDATE = "update"
MAX_ROWS, MAX_CLASSES = 24, 20  # of the table of epochs, and of that of classes
MAX_TIMES, MAX_IMAGES = 5, 2  # times at which an image is shown, and images of each kind of picture
MIN_HEIGHT = 96  # CSS pixels
# Fields of log.txt that have the position in the run, or the same value in every line.
POSITION = ("epoch", "step", "run", "n_parameters")
SETTINGS = ("train_lr", "train_min_lr", "train_weight_decay", "train_loss_scale", "skipped_images")
_RISING = ("acc", "macro_f1", "mAP", "_r2")  # parts of the names of metrics that are better if larger


def _validation(*metrics: str) -> tuple[str, ...]:
    """Return the log.txt names of validation metrics: first of the trained weights, then of the averaged weights."""
    return tuple(f"{prefix}{metric}" for prefix in ("test_", "ema_test_") for metric in metrics)


# Charts after the first one: title and metrics, of which those that the run has are drawn.
CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Learning rate", ("lr", "min_lr")),
    ("Gradient norm", ("grad_norm",)),
    ("Probe and k-NN accuracy in %", ("online_acc1", "knn_acc1")),
    ("Loss of the probe", ("online_loss",)),
    ("Parts of the loss", ("loss_main", "loss_align")),
    ("Token accuracy", ("mlm_acc", "top_token_share")),
    ("Validation accuracy in %", _validation("acc1", "acc5")),
    ("Validation accuracy and F1, means over classes, in %", _validation("balanced_acc", "macro_f1")),
    ("Calibration error in %", _validation("ece")),
    ("Validation mAP in %", _validation("mAP")),
    ("Validation error in the units of the labels", _validation("mean_abs_error", "rmse")),
    ("Validation R2", _validation("r2")),
    ("Validation loss", _validation("loss")),
    ("Rank of the features", ("feature_rank",)),
    ("Spread of the features", ("feature_std", "feature_cosine")),
    ("Uniformity of the features", ("feature_uniformity",)),
    ("Alignment of two views of an image", ("feature_alignment",)),
    ("Loss of fixed images, divided by that of the best trivial predictor", ("fixed_loss_to_trivial",)),
    ("Images per second", ("images_per_second",)),
    ("Share of time waiting for data", ("data_share",)),
)


def learning(run: RunFolder) -> str:
    """Return the answer to "is it learning?" and, if known, the loss curve and the losses of trivial predictors."""
    verdict = judge(run)
    color = {"yes": " yes", "barely": "", "in part": "", "not yet": " no", "unknown": ""}[verdict.answer]
    parts = [paragraph(verdict.text, f"verdict{color}")]
    if verdict.advice:
        parts.append(reference(verdict.advice, ADVICE_PAGES))
    x, y = run.series(verdict.loss)
    if y:
        curves = [Curve(verdict.loss, x, y)]
        ended = [
            (r["step"], r[f"train_{verdict.loss}"]) for r in run.epochs if is_number(r.get(f"train_{verdict.loss}"))
        ]
        if ended:
            curves.append(Curve("mean of the epoch", [step for step, _ in ended], [value for _, value in ended]))
        parts.append(
            figure(f"{verdict.loss} of the training images", line_chart(curves, x_label=UPDATE, levels=verdict.levels))
        )
    if verdict.levels:
        rows = [("this run", verdict.value), *sorted(verdict.levels.items(), key=lambda item: item[1])]
        parts.append(table(("predictor", verdict.loss), rows))
        parts.append(
            paragraph(
                f"Trivial predictors were computed on the first {run.trivial.get('images')} training images with "
                "their crops and masks, in the unit of the loss.",
                "sub",
            )
        )
    return "".join(parts)


def charts(run: RunFolder) -> str:
    """Return the charts of those metrics in CHARTS that the run has."""
    drawn = []
    for title, names in CHARTS:
        curves = [Curve(name, *run.series(name)) for name in names]
        curves = [curve for curve in curves if curve.y]
        if curves:
            drawn.append(figure(title, line_chart(curves, x_label=UPDATE)))
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def representation(run: RunFolder) -> str:
    """Return the first and the newest statistics of the features, with the values of collapsed and even features."""
    rows = []
    for name, meaning in EXTREMES.items():
        _, values = run.series(name)
        if values:
            rows.append((name, values[0], values[-1], meaning))
    if not rows:
        return ""
    first, last = (int(run.series(rows[0][0])[0][place]) for place in (0, -1))
    return table(("statistic", f"update {first}", f"update {last}", "extremes"), rows)


def pictures(run: RunFolder) -> str:
    """Return pictures that the run has drawn: up to MAX_IMAGES images of each kind, each at up to MAX_TIMES steps."""
    parts = []
    kinds = Counter[str]()
    for tag, drawn in run.pictures.items():
        kind = tag.rpartition("/")[0]
        kinds[kind] += 1
        if kinds[kind] <= MAX_IMAGES:
            unit = "epoch" if " | " in tag else UPDATE  # of an earlier version, which counted epochs
            times = [(f"{unit} {item.step}", item.image) for item in _spread(drawn)]
            row = "".join(figure(when, picture(image, f"{tag}, {when}", MIN_HEIGHT)) for when, image in times)
            parts.append(f'<h3>{_heading(tag)}</h3><div class="pictures">{row}</div>')
    left = sum(max(0, count - MAX_IMAGES) for count in kinds.values())
    return "".join(parts) + (paragraph(f"{left} further series are in VisualDL.", "sub") if left else "")


def rises(metric: str) -> bool:
    """Return whether a field of log.txt is a metric of evaluations that is better if larger."""
    return any(part in metric for part in _RISING) and not metric.startswith("train_")


def evaluations(run: RunFolder) -> str:
    """Return the best values of the evaluation metrics that should rise, and a table of up to MAX_ROWS epochs."""
    if not run.epochs:
        return ""
    names = list(dict.fromkeys(name for record in run.epochs for name in record if name not in POSITION))
    names.sort(key=lambda name: name in SETTINGS)  # these columns come last
    best = []
    for name in filter(rises, names):
        seen = [(record[name], record["epoch"]) for record in run.epochs if is_number(record.get(name))]
        if seen:
            value, epoch = max(seen, key=lambda item: item[0])
            best.append((name, value, epoch, seen[-1][0]))
    parts = [table(("metric", "best", "in epoch", "last"), best)] if best else []
    step = -(-len(run.epochs) // MAX_ROWS)
    chosen = run.epochs[(len(run.epochs) - 1) % step :: step]
    rows = [[record.get("epoch"), record.get("step"), *(record.get(name) for name in names)] for record in chosen]
    every = f", every {ordinal(step)}" if step > 1 else ""
    return "".join(parts) + f"<h3>Epochs{every}</h3>" + table(("epoch", "step", *names), rows)


def classes(run: RunFolder) -> str:
    """Return the results per class of the best epoch, or else of the newest one: up to MAX_CLASSES, the worst first."""
    if run.classes is None:
        return ""
    names, found = run.classes.names, run.classes.best or run.classes.last
    counts, accuracy = found.counts, found.counts.accuracy
    known = np.flatnonzero(counts.images)
    order = known[np.lexsort((-counts.images[known], accuracy[known]))]
    which = "the best one, of checkpoint-best.pd" if run.classes.best is found else "the newest one"
    note = f"Validation images after epoch {found.epoch}, {which}; the worst classes come first."
    parts = [paragraph(f"{note} The last column counts images of any class.", "sub")]
    if missed := missed_classes(run):
        parts.append(paragraph(missed, "verdict no"))
    rows = [
        (names[i], int(counts.images[i]), float(accuracy[i]), _confusion(counts, i, names), int(counts.predicted[i]))
        for i in order[:MAX_CLASSES].tolist()
    ]
    parts.append(table(("class", "images", "accuracy in %", "most frequent mistake", "classified as it"), rows))
    if len(order) > MAX_CLASSES:
        more, least = counted(len(order) - MAX_CLASSES, "more class"), accuracy[order[MAX_CLASSES]]
        parts.append(paragraph(f"{more} with an accuracy of {least:.4g} % or more.", "sub"))
    if len(known) < len(names):
        parts.append(paragraph(f"{counted(len(names) - len(known), 'class')} without validation images.", "sub"))
    return "".join(parts)


def _confusion(counts: ClassCounts, number: int, names: Sequence[str]) -> str:
    """Return the most frequent mistake for the images of a class as text, "" without any."""
    taken_for = int(counts.mistaken_for[number])
    return "" if taken_for < 0 else f"{counted(int(counts.mistakes[number]), 'image')} as '{names[taken_for]}'"


def speed(run: RunFolder) -> str:
    """Return a table of speed, waiting times, memory and counts."""
    values: dict[str, Any] = {}
    images = [r["images_per_second"] for r in run.intervals if is_number(r.get("images_per_second"))]
    if images:
        values["images per second, median"] = statistics.median(images)
    seconds = [r["time"] for r in run.intervals if is_number(r.get("time"))]
    waited = [r["time"] * r["data_share"] for r in run.intervals if is_number(r.get("data_share"))]
    if seconds:
        values["hours of training, without evaluations and checkpoints"] = sum(seconds) / 3600
        values["share of it waiting for data"] = sum(waited) / sum(seconds) if sum(seconds) else 0.0
    memory = [r["memory_gib"] for r in run.intervals if is_number(r.get("memory_gib"))]
    if memory:
        values["peak memory in GiB, main process"] = max(memory)
    for name, label in (
        ("n_parameters", "trainable parameters"),
        ("skipped_images", "unreadable images in the last epoch"),
    ):
        if run.epochs and is_number(run.epochs[-1].get(name)):
            values[label] = run.epochs[-1][name]
    return pairs(values) if values else ""


def starts(run: RunFolder) -> str:
    """Return a table of the starts and ends of the run."""
    rows: list[Sequence[Any]] = []
    for i, record in enumerate(run.history):
        following = [later["event"] for later in run.history[i + 1 :] if later.get("event") in ("start", "end")]
        position = (record.get("epoch"), record.get("step"))
        if record.get("event") == "start":
            kind = f"resumed from {record['resumed']}" if record.get("resumed") else "started"
            open_end = "" if following[:1] == ["end"] else "; it was killed" if following else "; no end is recorded"
            rows.append((record.get("time"), kind + open_end, *position))
        elif record.get("event") == "end":
            rows.append((record.get("time"), record.get("reason"), *position))
    return table(("time (UTC)", "event", "epoch", "update"), rows) if rows else ""


def warnings(run: RunFolder) -> str:
    """Return the list of the warnings in history.jsonl; "None." if that file has none, "" without the file."""
    found = [record for record in run.history if record.get("event") == "warning"]
    if run.history and not found:
        return paragraph("None.")
    return bullets([f"update {record.get('step')}: {record.get('message')}" for record in found])


def environment(run: RunFolder) -> str:
    """Return the newest recorded environment of a start, and the entries that differed at earlier starts."""
    found: list[Mapping[str, Any]] = [r["environment"] for r in run.history if isinstance(r.get("environment"), dict)]
    if not found:
        return ""
    earlier = {
        name: sorted({str(start.get(name)) for start in found[:-1]} - {str(value)}) for name, value in found[-1].items()
    }
    changed = [f"{name} was {', '.join(values)} at an earlier start" for name, values in earlier.items() if values]
    return pairs(found[-1]) + bullets(changed)


def published(run: RunFolder) -> str:
    """Return the comparison with the published logs whose recipe the run follows; "" if it follows none."""
    parts = []
    for match in compare_published(run):
        parts.append(
            paragraph(match.text, "verdict no" if match.deviates else "verdict yes" if match.rows else "verdict")
        )
        if match.rows:
            curves = [Curve(run.name, *match.own), Curve(match.log.name, match.log.epochs, match.log.values)]
            parts.append(figure(f"{match.log.metric} by epoch", line_chart(curves, x_label="epoch")))
            parts.append(table(("epoch", "published", "this run", "deviation in %"), match.rows))
    return "".join(parts)


def options(run: RunFolder) -> str:
    """Return all options, folded."""
    return folded(f"{counted(len(run.options), 'option')} of config.yaml", pairs(run.options)) if run.options else ""


def lacking(run: RunFolder) -> str:
    """Return the list of contents that the report lacks, with the reasons."""
    return bullets(run.lacking)


def _heading(tag: str) -> str:
    """Return a tag as the heading of its pictures, for example `image 1: reconstruction`."""
    label, _, index = tag.rpartition("/")
    return escape(f"image {index}: {label.replace('_', ' ')}" if index.isdecimal() and label else tag)


def _spread(items: Sequence[Picture]) -> Sequence[Picture]:
    """Return up to MAX_TIMES items, evenly spaced, with the first and the last."""
    count = min(MAX_TIMES, len(items))
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]
