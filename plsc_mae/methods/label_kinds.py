"""Kinds of labels: one class per image, several labels per image, or numbers. Each has its loss, scores and metrics.

Runs, evaluations, predictions and exports ask a `LabelKind` for what differs. B batch, n images, K outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from plsc_mae.analysis.class_counts import DEVIATIONS, chance_accuracy, describe_missed
from plsc_mae.analysis.classification import TOP, classification_metrics
from plsc_mae.analysis.evaluation_report import Report, class_report, label_report, number_report
from plsc_mae.analysis.label_metrics import multilabel_metrics, regression_metrics
from plsc_mae.errors import CheckpointError, flag
from plsc_mae.losses import (
    binary_cross_entropy,
    known_mean,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
    zero_unknown,
)
from plsc_mae.methods.base import PREDICTION

LABEL_KIND = "label_kind"  # entry of a checkpoint; absent for classes
RANKINGS = 10  # random rankings whose mAP estimates that of chance
Values = npt.NDArray[np.float32]


class LabelKind(ABC):
    """A kind of labels, with its loss, scores and metrics."""

    task: ClassVar[str]  # value of --task
    # True if labels are float32 [B, K], with NaN for unknown ones; False if they are class numbers [B]
    dense: ClassVar[bool] = True
    binary: ClassVar[bool] = False  # True if labels [B, K] are 0, 1 or NaN
    score_names: ClassVar[tuple[str, ...]] = ("loss",)  # keys of the result of `scores`
    best_metric: ClassVar[str]  # the metric whose largest value marks the best checkpoint
    perfect: ClassVar[float] = 100.0  # largest possible value of `best_metric`
    titles: ClassVar[Mapping[str, str]]  # titles under which logs and reports show the main metrics, {metric: title}
    more_titles: ClassVar[Mapping[str, str]] = {}  # the same for further metrics, which are in percent
    note: ClassVar[str]  # description of the network's outputs
    noun: ClassVar[str]  # word for several labels, such as "classes"
    values: ClassVar[str] = "probabilities"  # name of the values that `predict` returns

    @property
    @abstractmethod
    def activation(self) -> str:
        """A line of NumPy code that computes `values` from the `logits` [K] of an image, for exports' example.py."""

    def fit(self, labels: npt.NDArray[Any]) -> LabelKind:
        """Adopt the statistics of a new run's training labels and return this kind; only `Numbers` has statistics."""
        return self

    def constant_scores(self, outputs: int) -> tuple[str, ...]:
        """Return those of `score_names` that are the same for every network with that number of outputs."""
        return ()

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss, in float32, of outputs [B, K] and labels."""

    @abstractmethod
    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the scores of every image, {name: float32 [B]} for `score_names`."""

    @abstractmethod
    def metrics(self, outputs: Values, labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return the metrics that are computed from the outputs of a whole data set; undefined metrics are absent.

        Args:
            outputs: [n, K].
            labels: class numbers int64 [n], or float32 [n, K].
        """

    @abstractmethod
    def chance(self, labels: npt.NDArray[Any]) -> float:
        """Return the `best_metric` that a predictor that does not see the images rarely exceeds.

        Args:
            labels: labels of the data set, class numbers int64 [n], or float32 [n, K].
        """

    def warnings(self, outputs: Values, labels: npt.NDArray[Any], names: Sequence[str]) -> Iterator[str]:
        """Yield sentences about results that the metrics hide; the arguments are those of `report`."""
        yield from ()

    @abstractmethod
    def report(self, outputs: Values, labels: npt.NDArray[Any], names: Sequence[str]) -> Report:
        """Return tables and charts of a data set.

        Args:
            outputs: as in `metrics`.
            labels: as in `metrics`.
            names: the K names of the classes, labels or numbers.
        """

    @abstractmethod
    def predict(self, outputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return (`values`, indices), each [B, count], of the most probable outputs, the best first.

        `Numbers` returns all outputs instead, [B, K] each.
        """

    def describe(self, value: float) -> str:
        """Return the text of a predicted value."""
        return f"{100 * value:6.2f} %"

    def state(self) -> dict[str, Any]:
        """Return the checkpoint entries for this kind; `Classes` has none, as in checkpoints of earlier versions."""
        return {LABEL_KIND: {"task": self.task}}

    def restore(self, stored: LabelKind, path: object) -> None:
        """Adopt the state of `stored`, the kind of labels that the checkpoint `path` was trained with.

        Raises:
            CheckpointError: the checkpoint was trained with another kind.
        """
        if stored.task != self.task:
            raise CheckpointError(
                f"{path} was trained with {flag('task')} {stored.task}, but this run has {self.task}; give "
                f"{flag('task')} {stored.task}, or start another run in another folder"
            )


class Classes(LabelKind):
    """One class per image."""

    task = "classification"
    dense = False
    score_names = ("loss", "acc1", "acc5")
    best_metric = "acc1"
    titles: ClassVar[Mapping[str, str]] = {
        "acc1": "Acc@1",
        "acc5": "Acc@5",
        "loss": "loss",
    }
    more_titles: ClassVar[Mapping[str, str]] = {
        "balanced_acc": "balanced accuracy",
        "macro_f1": "macro F1",
        "ece": "calibration error",
    }
    note = "[B, K] scores of the classes; their softmax is the probabilities"
    noun = "classes"

    smoothing: float = 0.0  # label smoothing of the loss, which fine-tuning sets to --smoothing

    @property
    def activation(self) -> str:
        """A line of NumPy code for the probabilities."""
        return "values = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()"

    def constant_scores(self, outputs: int) -> tuple[str, ...]:
        """Return ("acc5",) if there are at most five classes: top-5 accuracy is then 100."""
        return ("acc5",) if outputs <= TOP else ()

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy with distributions [B, K], or with smoothed class numbers [B]."""
        if target.ndim == 2:
            return soft_target_cross_entropy(outputs, target)
        return label_smoothing_cross_entropy(outputs, target, self.smoothing)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return cross entropy, top-1 and top-5 accuracy (0 or 100) and prediction, see `classification_scores`."""
        return classification_scores(outputs, labels)

    def metrics(self, outputs: Values, labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return balanced accuracy, macro F1 and expected calibration error, in percent."""
        return classification_metrics(outputs, labels)

    def chance(self, labels: npt.NDArray[Any]) -> float:
        """Return the share of the most frequent class plus two standard deviations of its estimate, in percent."""
        return chance_accuracy(np.bincount(labels))

    def warnings(self, outputs: Values, labels: npt.NDArray[Any], names: Sequence[str]) -> Iterator[str]:
        """Yield a warning about classes with images that no image is classified as."""
        images = np.bincount(labels, minlength=outputs.shape[1])
        predicted = np.bincount(outputs.argmax(axis=1), minlength=outputs.shape[1])
        if missed := describe_missed(images, predicted, names):
            yield missed

    def report(self, outputs: Values, labels: npt.NDArray[Any], names: Sequence[str]) -> Report:
        """Return scores per class, the confusion matrix and the calibration."""
        return class_report(outputs, labels, names)

    def predict(self, outputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest softmax probabilities and their classes."""
        values, numbers = F.softmax(outputs, axis=-1).topk(count)
        return values, numbers

    def state(self) -> dict[str, Any]:
        """Return {}, see `LabelKind.state`."""
        return {}


class BalancedClasses(Classes):
    """One class per image, of a run whose training draws every class equally often."""

    best_metric = "balanced_acc"

    def chance(self, labels: npt.NDArray[Any]) -> float:
        """Return the balanced accuracy of guesses plus two of its standard deviations, in percent."""
        return chance_accuracy(np.bincount(labels), balanced=True)


class LabelSets(LabelKind):
    """Several labels per image, each present (1), absent (0) or unknown (NaN)."""

    task = "multilabel"
    binary = True
    best_metric = "mAP"
    titles: ClassVar[Mapping[str, str]] = {"mAP": "mAP", "macro_f1": "macro F1", "loss": "loss"}
    note = "[B, K] scores of the labels; their sigmoid is the probabilities"
    noun = "labels"

    @property
    def activation(self) -> str:
        """A line of NumPy code for the probabilities."""
        return "values = 1 / (1 + np.exp(-logits))"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross entropy, the mean over the known labels."""
        return known_mean(binary_cross_entropy(outputs, target), target)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the binary cross entropy of every image, the mean over its known labels."""
        return {"loss": known_mean(binary_cross_entropy(outputs, labels), labels, axis=1)}

    def metrics(self, outputs: Values, labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return mAP and macro F1 in percent, see `analysis.label_metrics`."""
        return _defined(multilabel_metrics(outputs, labels))

    def chance(self, labels: npt.NDArray[Any]) -> float:
        """Return the mean mAP of ten random rankings plus two of their standard deviations; NaN without positives."""
        rng = np.random.default_rng(0)
        draws = [rng.standard_normal(labels.shape, np.float32) for _ in range(RANKINGS)]
        found = [self.metrics(draw, labels).get(self.best_metric, np.inf) for draw in draws]
        return float(np.mean(found) + DEVIATIONS * np.std(found))

    def report(self, outputs: Values, labels: npt.NDArray[Any], names: Sequence[str]) -> Report:
        """Return average precision and F1 per label."""
        return label_report(outputs, labels, names)

    def predict(self, outputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest sigmoid probabilities and their labels."""
        values, numbers = F.sigmoid(outputs).topk(count)
        return values, numbers


class Numbers(LabelKind):
    """One or more numbers per image, which may be unknown (NaN). The network predicts them standardized.

    Args:
        mean: mean [K] of the training labels.
        std: standard deviation [K] of the training labels; positive.

    Raises:
        ValueError: the two are not vectors of the same length, or a standard deviation is not positive.
    """

    task = "regression"
    best_metric = "r2"
    perfect = 1.0
    titles: ClassVar[Mapping[str, str]] = {
        "mean_abs_error": "mean absolute error",
        "rmse": "RMSE",
        "r2": "R2",
        "loss": "loss",
    }
    note = "[B, K] standardized predictions; times std plus mean, see example.py, they have the unit of the labels"
    noun = "numbers"
    values = "values"

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not (self.std > 0).all():
            raise ValueError(f"mean {mean} and std {std} must be vectors of one length, and std positive")

    def fit(self, labels: npt.NDArray[Any]) -> LabelKind:
        """Adopt mean and standard deviation of training labels [n, K], and return this kind.

        The std of a constant label is taken as 1. The values of a label that is unknown in all images are taken as 0.
        """
        known = np.where(np.isfinite(labels).any(axis=0), labels.astype(np.float64), 0.0)
        std = np.nanstd(known, axis=0).astype(np.float32)
        self.mean = np.nanmean(known, axis=0).astype(np.float32)
        self.std = np.where(std > 0, std, np.float32(1))
        return self

    @property
    def activation(self) -> str:
        """A line of NumPy code for the numbers."""
        return f"values = logits * np.float32({self.std.tolist()}) + np.float32({self.mean.tolist()})"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error of the standardized numbers, over the known ones."""
        return known_mean(self._squared_error(outputs, target), target)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of every image, over its known standardized numbers."""
        return {"loss": known_mean(self._squared_error(outputs, labels), labels, axis=1)}

    def metrics(self, outputs: Values, labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return mean absolute error and RMSE in the units of the labels, and R^2, see `analysis.label_metrics`."""
        return _defined(regression_metrics(outputs * self.std + self.mean, labels))

    def chance(self, labels: npt.NDArray[Any]) -> float:
        """Return the square of 2 / sqrt(n), two standard deviations of the correlation of unrelated numbers."""
        return DEVIATIONS**2 / len(labels)

    def report(self, outputs: Values, labels: npt.NDArray[Any], names: Sequence[str]) -> Report:
        """Return the errors per number, in the units of the labels."""
        return number_report(outputs * self.std + self.mean, labels, names)

    def predict(self, outputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return all numbers in their units, and their indices, in the order of the outputs; `count` has no effect."""
        values = outputs.astype("float32") * paddle.to_tensor(self.std) + paddle.to_tensor(self.mean)
        return values, paddle.arange(values.shape[1]).expand(values.shape)

    def describe(self, value: float) -> str:
        """Return the text of a predicted number."""
        return f"{value:10.4g}"

    def state(self) -> dict[str, Any]:
        """Return the checkpoint entry of the task, with mean and standard deviation."""
        return {LABEL_KIND: {"task": self.task, "mean": self.mean.tolist(), "std": self.std.tolist()}}

    def restore(self, stored: LabelKind, path: object) -> None:
        """Adopt mean and standard deviation of a checkpoint; raise CheckpointError as `LabelKind.restore` does."""
        super().restore(stored, path)
        assert isinstance(stored, Numbers)
        self.mean, self.std = stored.mean, stored.std

    def _squared_error(self, outputs: Tensor, target: Tensor) -> Tensor:
        standardized = (target - paddle.to_tensor(self.mean)) / paddle.to_tensor(self.std)
        return (outputs.astype("float32") - zero_unknown(standardized)) ** 2


KINDS: Mapping[str, type[LabelKind]] = {kind.task: kind for kind in (Classes, LabelSets, Numbers)}


def stored_kind(meta: Mapping[str, Any], path: object) -> LabelKind:
    """Return the kind of labels that the metadata of a checkpoint describe; classes if they describe none.

    Raises:
        CheckpointError: the entry is damaged.
    """
    entry = meta.get(LABEL_KIND)
    if entry is None:
        return Classes()
    try:
        settings = dict(entry)
        return KINDS[settings.pop("task")](**settings)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} has the entry {LABEL_KIND} {entry!r}; expected a task of {', '.join(KINDS)} with its settings; "
            "take another checkpoint of the run"
        ) from None


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the scores of logits [B, K] and class numbers [B], float32 [B] each.

    They are "loss", "acc1" and "acc5", which are 0 or 100, and `PREDICTION`, the class that "acc1" judges.
    """
    logits = logits.astype("float32")
    best = logits.topk(min(TOP, logits.shape[1]), axis=1)[1]
    hit = (best == labels.unsqueeze(1)).astype("float32") * 100
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "acc1": hit[:, 0],
        "acc5": hit.max(axis=1),
        PREDICTION: best[:, 0].astype("float32"),
    }


def _defined(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
