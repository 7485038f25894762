"""Evaluation of a trained classifier (`--eval`): its metrics are printed and, with --save_path, written and drawn."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc_mae import console
from plsc_mae.analysis.classification import topk_in_set
from plsc_mae.analysis.corruption import ALEXNET_ERRORS, mean_corruption_error
from plsc_mae.analysis.evaluation_report import Report, corruption_report
from plsc_mae.commands.evaluation_files import require_free_files, save_evaluation
from plsc_mae.config import ClassifyConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.loading.eval_sets import EvaluationPart
from plsc_mae.methods.classify import ClassifyTask
from plsc_mae.methods.label_kinds import LabelKind
from plsc_mae.parallel.world import World
from plsc_mae.train.observers.base import Evaluation, Gathered
from plsc_mae.wording import counted

_KS = (1, 5)  # k of the top-k accuracies of images with several correct classes

logger = logging.getLogger(__name__)


class _Result(NamedTuple):
    """Metrics of a part of an evaluation set, without prefix, and the predictions behind them."""

    part: EvaluationPart
    metrics: dict[str, float]
    images: int
    gathered: Gathered


def evaluate(
    task: ClassifyTask,
    parts: Iterable[EvaluationPart],
    evaluation_of: Callable[[EvaluationPart], Evaluation],
    config: ClassifyConfig,
    world: World,
) -> Mapping[str, float]:
    """Evaluate a network, print the metrics and, with --save_path, write them; all processes must call.

    Returns:
        The metrics by name, with the prefix "test_".

    Raises:
        CheckpointError: the loss is not finite.
        DataError: images are missing or cannot be read, or a file cannot be written.
        ConfigError: see `find_evaluation_parts`.
    """
    folder = Path(config.save_path)
    if config.save_path:
        require_free_files(folder)
    errors: dict[str, list[float]] = {}
    images = 0
    for part in parts:
        result = _evaluate_part(task, part, evaluation_of(part))
        images += result.images
        if part.name:
            name, _, severity = part.name.rpartition("/")
            errors.setdefault(name, []).append(100 - result.metrics["acc1"])
            if world.is_main:
                print(
                    f"{name} {severity}: error {errors[name][-1]:.2f} %, {counted(result.images, 'image')}", flush=True
                )
    metrics, line = _summarize_corruptions(errors) if errors else (result.metrics, _describe(task.kind, result))
    if world.is_main:
        event = {"event": "evaluation", **{f"test_{name}": value for name, value in metrics.items()}, "images": images}
        console.print_result(line, event)
        if not errors:
            for warning in _warnings(task.kind, result):
                logger.warning("%s", warning)
    if world.is_main and config.save_path:
        summary = {"eval_set": config.eval_set, "checkpoint": config.resume or config.finetune, "images": images}
        report = corruption_report(errors) if errors else _report(task.kind, result)
        for path in save_evaluation(folder, {**summary, **metrics}, report):
            print(path)
    return {f"test_{name}": value for name, value in metrics.items()}


def _evaluate_part(task: ClassifyTask, part: EvaluationPart, evaluation: Evaluation) -> _Result:
    """Evaluate the network on a part, with the classes of the part as its only choices; all processes must call."""
    task.select_outputs(part.outputs)
    metrics = {name.removeprefix("test_"): value for name, value in evaluation().metrics.items()}
    gathered = evaluation.gathered
    assert gathered is not None
    if not math.isfinite(metrics["loss"]):
        raise CheckpointError(
            f"the loss of the evaluation is {metrics['loss']}: the weights are too large for float32; evaluate an "
            "earlier checkpoint of the run"
        )
    if part.accepted is not None:  # an image has several correct classes, so metrics for a single one have no meaning
        right = part.accepted[gathered.numbers]
        metrics = {f"real_acc{k}": 100 * float(np.mean(topk_in_set(gathered.outputs, right, k))) for k in _KS}
    return _Result(part, metrics, evaluation.scored, gathered)


def _describe(kind: LabelKind, result: _Result) -> str:
    """Return the metrics of an evaluation set with a single part, as text."""
    metrics, outputs = result.metrics, result.gathered.outputs.shape[1]
    if result.part.accepted is not None:
        values = " ".join(f"Acc@{k} {metrics[f'real_acc{k}']:.3f}" for k in _KS)
        return f"* ReaL {values}, {counted(result.images, 'image')}"
    values = " ".join(f"{title} {metrics[name]:.3f}" for name, title in kind.titles.items() if name in metrics)
    classes = counted(outputs, "class")
    more = ", ".join(
        [
            *(f"{title} {metrics[name]:.2f} %" for name, title in kind.more_titles.items()),
            *(f"{kind.titles[name]} is always 100 with {classes}" for name in kind.constant_scores(outputs)),
        ]
    )
    return f"* {values}, {counted(result.images, 'image')}" + (f"\n  {more}" if more else "")


def _warnings(kind: LabelKind, result: _Result) -> Iterator[str]:
    _, outputs, labels = result.gathered
    if result.part.accepted is None:
        yield from kind.warnings(outputs, labels, _output_names(result))


def _report(kind: LabelKind, result: _Result) -> Report:
    """Return the tables and charts of an evaluation set with a single part; none if images have several classes."""
    _, outputs, labels = result.gathered
    if result.part.accepted is not None:
        return Report({}, [])
    return kind.report(outputs, labels, _output_names(result))


def _output_names(result: _Result) -> list[str]:
    """Return a name for every output; those without one have their numbers."""
    names, outputs = result.part.images.classes, result.gathered.outputs.shape[1]
    return [*names, *map(str, range(len(names), outputs))]


def _summarize_corruptions(errors: Mapping[str, list[float]]) -> tuple[dict[str, float], str]:
    """Return (metrics of all corruptions, line to print); `errors` has top-1 errors in percent, one per severity."""
    counted = [values for name, values in errors.items() if name in ALEXNET_ERRORS] or list(errors.values())
    metrics = {"error": float(np.mean(counted))}
    mce = mean_corruption_error(errors)
    if mce is not None:
        metrics["mce"] = mce
    shown = "no mCE, which needs all 15 corruptions" if mce is None else f"mCE {mce:.2f} %"
    return metrics, f"* {shown}, mean error {metrics['error']:.2f} %"
