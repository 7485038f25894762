"""Published training logs, and their comparison with a run of the same recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from plsc_mae.config.recipes import recipe_path
from plsc_mae.config.resolve import load_config
from plsc_mae.config.schema import options, plain_values
from plsc_mae.report.run_folder import RunFolder, is_number

TOLERANCE = 0.05  # a larger relative deviation of a loss from the published one is flagged
# Options that are not compared: folders and files, images, evaluation, precision, and the split of a batch.
NEUTRAL_GROUPS = (
    "Run",
    "Checkpoints and resuming",
    "Data",
    "Precision",
    "Parallelism and memory",
    "Evaluation during pre-training",
)
NEUTRAL_OPTIONS = ("batch_size", "accum_iter")
DECISIVE_OPTIONS = ("method", "phase", "model", "input_size")  # compared even in a neutral group
RULE = f"A loss is flagged if it deviates by more than {TOLERANCE:.0%} from the published one of the same epoch."


class PublishedLog(NamedTuple):
    """A published training log, as far as its numbers are known."""

    name: str  # code base, network and length
    recipe: str
    source: str  # place where the log was published
    metric: str  # name of the values in our log.txt
    images_per_update: int  # effective batch size
    epochs: Sequence[int]  # zero-based epochs whose values are known
    values: Sequence[float]  # mean of the metric in each of these epochs


class Comparison(NamedTuple):
    """Comparison of a run with a published log of its recipe."""

    log: PublishedLog
    text: str  # the result in a sentence
    deviates: bool  # whether a loss deviates by more than TOLERANCE
    own: tuple[list[float], list[float]]  # (epochs, values) of the run
    # (epoch, published value, value of the run, deviation in percent) for every epoch that both have
    rows: list[tuple[int, float, float, float]]


@cache
def published_logs() -> tuple[PublishedLog, ...]:
    """Return the published logs in the package."""
    entries = json.loads(Path(__file__).with_name("published_logs.json").read_text(encoding="utf-8"))
    return tuple(PublishedLog(**entry) for entry in entries)


def compare_published(run: RunFolder) -> list[Comparison]:
    """Return a comparison of a run with each published log whose recipe it follows.

    A run follows a recipe if `deviating_options` finds no difference, and if its number of images per update is that of
    the log or was not recorded. Whether the images are the same is not examined.
    """
    return [
        _compare(run, log)
        for log in published_logs()
        if run.images_per_update in (None, log.images_per_update) and not deviating_options(run.options, log.recipe)
    ]


def deviating_options(found: Mapping[str, Any], recipe: str) -> list[str]:
    """Return the names of the options whose values differ between a run and a recipe, apart from the neutral ones.

    An option that `found` lacks, because a version without it wrote the config.yaml, counts as equal. The model does
    not: if it is missing, it counts as different.
    """
    config = load_config(str(recipe_path(recipe)))
    neutral = {item.name for item in options(type(config)) if item.metadata.get("group") in NEUTRAL_GROUPS}
    neutral = (neutral | set(NEUTRAL_OPTIONS)) - set(DECISIVE_OPTIONS)
    wanted = {name: value for name, value in plain_values(config).items() if name not in neutral}
    return [name for name, value in wanted.items() if found.get(name, None if name == "model" else value) != value]


def _compare(run: RunFolder, log: PublishedLog) -> Comparison:
    points = [(r["epoch"], r[log.metric]) for r in run.epochs if is_number(r.get(log.metric)) and "epoch" in r]
    own = ([float(epoch) for epoch, _ in points], [float(value) for _, value in points])
    of_epoch = dict(points)
    rows = [
        (epoch, value, of_epoch[epoch], 100 * (of_epoch[epoch] / value - 1))
        for epoch, value in zip(log.epochs, log.values, strict=True)
        if epoch in of_epoch
    ]
    flagged = [row for row in rows if abs(row[3]) > 100 * TOLERANCE]
    start = (
        f"The options are those of {log.recipe}, whose log is published ({log.source}; ImageNet-1k, "
        f"{log.images_per_update} images per update). "
    )
    if not rows:
        text = f"{start}The run has no epoch yet whose loss is published."
    elif flagged:
        worst = max(flagged, key=lambda row: abs(row[3]))
        at = f"most at epoch {worst[0]}: {worst[2]:.4g} instead of {worst[1]:.4g}"
        text = f"{start}DEVIATES at {len(flagged)} of {len(rows)} epochs, {at}. {RULE}"
    else:
        text = f"{start}The loss agrees at every epoch that both have ({len(rows)}). {RULE}"
    return Comparison(log, text, bool(flagged), own, rows)
