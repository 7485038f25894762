"""The answer to "is it learning?": the loss of a run beside those of trivial predictors."""

from __future__ import annotations

import contextlib
import math
import shlex
from typing import Literal, NamedTuple

import numpy as np

from plsc_mae.analysis.class_counts import chance_accuracy, describe_imbalance, describe_majority, describe_missed
from plsc_mae.analysis.trivial import CONTEXT_FREE, DESCRIPTIONS
from plsc_mae.config import ClassifyConfig
from plsc_mae.config.resolve import load_config
from plsc_mae.errors import UserError
from plsc_mae.names import escape_name
from plsc_mae.report.run_folder import RunFolder, is_number
from plsc_mae.train.checkpoint.folder import CONFIG
from plsc_mae.train.scaling import highest_is_best, is_early, remedy_at_chance
from plsc_mae.wording import guides

_BALANCED, _ACCURACY = "test_balanced_acc", "test_acc1"
_PRECISION, _EXPLAINED = "test_mAP", "test_r2"
# One for each --task, with its unit; the first one is that of --balance_classes.
_MAIN_METRICS = {_BALANCED: " %", _ACCURACY: " %", _PRECISION: " %", _EXPLAINED: ""}
Answer = Literal["yes", "barely", "in part", "not yet", "unknown"]
ADVICE = "Levels of the loss, plateaus and remedies:"  # for "barely", "in part" and "not yet"
CLEAR = 0.05  # a loss that is below a trivial one by less than this part of it is not clearly below
# The same for the best trivial one. Measured with four MAEs, by the PSNR of reconstructions beside that of the best
# fill: 0.12 and 0.03 dB more at losses 5.6 and 8.8 % below; 0.79 and 0.69 dB more at 12.1 and 12.6 %.
DRAWS = 0.1
RISEN = 0.05  # a loss that is above its start by this part of it has diverged
FALLING = 0.01  # a loss whose mean falls by this part of it from one fifth of the epochs to the next is still falling
_EARLY = "This is normal early in a run. "
ADVICE_PAGES = ("docs/read-the-curves.md", "docs/zh/read-the-curves.md")


class Verdict(NamedTuple):
    """The answer and its reason.

    Attributes:
        answer: "yes" if the loss is well below those of all trivial predictors, see `DRAWS`; "barely" if it is just
            below them; "in part" if it is not, but is clearly below those of all predictors that predict the same for
            all hidden patches, see `CLEAR`; "not yet" otherwise; "unknown" if the run has no finite loss or no losses
            of trivial predictors. For a classifier with results per class: "yes" if its best accuracy is above chance,
            but "in part" if it misses classes, see `describe_missed`; else "not yet". For a regression: "yes" if its
            best R^2 exceeds `CLEAR`, "barely" if it exceeds 0, else "not yet". For several labels per image: "yes" if
            the best mAP is above that of random rankings, else "not yet".
        text: the answer for the reader.
        loss: name of the compared loss.
        value: its newest mean, see `RunFolder.last_loss`; None without one.
        levels: losses of trivial predictors by their descriptions.
        finished: True if the last epoch of the run is over.
    """

    answer: Answer
    text: str
    loss: str
    value: float | None
    levels: dict[str, float]
    finished: bool = False

    @property
    def advice(self) -> str:
        """The text before links to `ADVICE_PAGES`; "" if the network is clearly better than all trivial predictors.

        It is also "" without such predictors; the text for a classifier names its pages itself.
        """
        if not self.levels or self.answer not in ("barely", "in part", "not yet"):
            return ""
        return ADVICE if self.finished else _EARLY + ADVICE

    @property
    def lines(self) -> list[str]:
        """The text and, if there is one, the advice with its pages, for the console."""
        return [self.text, *([f"{self.advice} {', '.join(ADVICE_PAGES)}"] if self.advice else [])]


def judge(run: RunFolder) -> Verdict:
    """Compare the newest loss of a run, see `RunFolder.last_loss`, with those of trivial predictors."""
    name = str(run.trivial.get("loss", "loss"))
    losses = {key: float(loss) for key, loss in run.trivial.get("losses", {}).items()}
    levels = {DESCRIPTIONS.get(key, key): loss for key, loss in losses.items()}
    value, curve = run.last_loss(name), run.series(name)[1]
    has_risen = value is not None and len(curve) > 0 and value >= (1 + RISEN) * curve[0]
    remedy = ", so lower the learning rate" if has_risen else ""
    fall = f" It started at {curve[0]:.4g}{remedy}." if curve else ""
    if value is None:
        text = _best_of_sweep(run) or f"the logs have no finite value of {name}."
        return Verdict("unknown", f"Unknown: {text}", name, value, levels)
    if not levels:
        answer, text = _compare_with_chance(run, _without_levels(run, name, value) + fall)
        return Verdict(answer, text, name, value, levels)
    beaten = [f"{label} ({level:.4g})" for label, level in levels.items() if value < level]
    others = [f"{label} ({level:.4g})" for label, level in levels.items() if value >= level]
    flat = min((loss for key, loss in losses.items() if key in CONTEXT_FREE), default=-math.inf)
    answer = "in part" if value < (1 - CLEAR) * flat else "not yet"
    if not others:
        best = min(levels.values())
        answer = "yes" if value < (1 - DRAWS) * best else "barely"
        reason = f"{1 - value / best:.1%} below the best trivial predictor: it is below {', '.join(beaten)}"
    elif beaten:
        reason = f"below {', '.join(beaten)}, but not below {', '.join(others)}"
        if answer == "not yet" and value < flat:
            same = "the best prediction that is the same for all hidden patches"
            reason = f"only {1 - value / flat:.1%} below {same}: it is {reason}"
    else:
        reason = f"not below {', '.join(others)}"
    finished = bool(run.epochs) and run.epochs[-1].get("epoch", 0) + 1 == run.options.get("epochs")
    more = _more_epochs(run, name) if finished and answer != "yes" and not has_risen else ""
    drawn = " `plsc-mae reconstruct` shows what it draws." if answer == "barely" else ""
    text = f"{answer.capitalize()}: the {name} is {value:.4g}, {reason}.{fall}{more}{drawn}"
    return Verdict(answer, text, name, value, levels, finished)


def _more_epochs(run: RunFolder, name: str) -> str:
    """Return a sentence, after a space, if the loss has still fallen in the last fifth of the epochs; else "".

    A tenth is too short: schedules lower the learning rate to about 0 at the end, and the loss with it hardly moves.
    """
    means = [record[f"train_{name}"] for record in run.epochs if is_number(record.get(f"train_{name}"))]
    length = max(len(means) // 5, 1)
    before, last = means[-2 * length : -length], means[-length:]
    if not before or np.mean(last) > (1 - FALLING) * np.mean(before):
        return ""
    fall = 1 - np.mean(last) / np.mean(before)
    return f" It fell by {fall:.1%} in the last fifth of the epochs: train for more epochs."


def _compare_with_chance(run: RunFolder, result: str) -> tuple[Answer, str]:
    """Return (answer, text) for a run without losses of trivial predictors; `result` is the text about its numbers."""
    if explained := run.series(_EXPLAINED)[1]:
        return _compare_with_mean(run, max(explained), result)
    if precisions := run.series(_PRECISION)[1]:
        return _compare_with_rankings(run, max(precisions), result)
    balanced = bool(run.series(_BALANCED)[1])
    accuracies = run.series(_BALANCED if balanced else _ACCURACY)[1]
    if run.classes is None or not accuracies:
        return "unknown", result
    images, names = run.classes.last.counts.images, [*map(escape_name, run.classes.names)]
    limit, share = chance_accuracy(images, balanced=balanced), describe_majority(images, names)
    if balanced:
        share = f"always answering the same class reaches {100 / np.count_nonzero(images):.1f} %"
    if limit >= 100:
        return "unknown", f"{result} The accuracy says little: {share}."
    if max(accuracies) > limit:
        missed = missed_classes(run)
        answer: Answer = "in part" if missed else "yes"
        return answer, f"{answer.capitalize()}: {result} {missed}{' ' * bool(missed)}For comparison: {share}."
    chance = f"This is within chance: {share}, and luck reaches {limit:.4g} %."
    return "not yet", f"Not yet: {result} {chance} {_remedy(run, 'the classes with plsc-mae doctor')}"


def _best_of_sweep(run: RunFolder) -> str:
    """Return a sentence about the best rate of a sweep, which has a loss for each rate; "" for other runs."""
    last = (run.epochs or [{}])[-1]
    accuracies, losses = (
        {
            float(name.removeprefix(start)): value
            for name, value in last.items()
            if name.startswith(start) and is_number(value)
        }
        for start in (f"{_ACCURACY}_lr", "test_loss_lr")
    )
    if not accuracies or not losses:
        return ""
    best = max(accuracies, key=lambda rate: accuracies[rate])
    higher = (
        "the highest one has the lowest test_loss, so higher ones may be better"
        if highest_is_best(losses)
        else "the highest one does not have the lowest test_loss, so higher ones will not help"
    )
    found = f"the best rate is {best:g}, with {_ACCURACY} {accuracies[best]:.4g} %; {higher}"
    return f"a sweep trains a classifier per rate and keeps none; {found}."


def missed_classes(run: RunFolder) -> str:
    """Return a sentence about classes that no image is classified as in the best epoch; "" without such classes."""
    if run.classes is None:
        return ""
    counts = (run.classes.best or run.classes.last).counts
    missed = describe_missed(counts.images, counts.predicted, [*map(escape_name, run.classes.names)])
    unbalanced = "" if run.options.get("balance_classes") else describe_imbalance(run.classes.trained)
    return f"{missed[0].upper()}{missed[1:]}{'; ' * bool(unbalanced)}{unbalanced}." if missed else ""


def _compare_with_mean(run: RunFolder, best: float, result: str) -> tuple[Answer, str]:
    """Return (answer, text) for a regression of this best R^2: the error of the labels' mean has an R^2 of 0."""
    if best > CLEAR:
        return "yes", f"Yes: {result} Always predicting the mean of the labels has a test_r2 of 0."
    answer: Answer = "barely" if best > 0 else "not yet"
    return answer, (
        f"{answer.capitalize()}: {result} That is {'hardly' if best > 0 else 'no'} better than always predicting the "
        f"mean of the labels, whose test_r2 is 0. {_remedy(run, 'that the labels belong to the images')}"
    )


def _compare_with_rankings(run: RunFolder, best: float, result: str) -> tuple[Answer, str]:
    """Return (answer, text) for several labels per image and this best mAP, in percent."""
    limit = run.chance
    if limit is None or limit >= 100:
        return "unknown", result
    level = f"random rankings of the validation images reach up to {limit:.4g} %"
    if best > limit:
        return "yes", f"Yes: {result} For comparison: {level}."
    remedy = _remedy(run, "that the labels belong to the images")
    return "not yet", f"Not yet: {result} This is within chance: {level}. {remedy}"


def _remedy(run: RunFolder, check: str) -> str:
    """Return a sentence with what to try or check after a run at chance, or that it is too early to judge the run."""
    remedy, file = "a higher learning rate or more epochs", str(run.path / CONFIG)
    with contextlib.suppress(UserError):
        config = load_config(file)
        if isinstance(config, ClassifyConfig):
            remedy = remedy_at_chance(config)
            done, updates = run.epochs[-1].get("epoch", 0) + 1, max(run.epochs[-1].get("step", 0), 1)
            if is_early(config, done, updates):
                command = f"plsc-mae {config.phase} --config {shlex.quote(file)} --auto_resume"
                early = f"{done} of {config.epochs} epochs are done: too early to judge."
                return f"{early} If the run has stopped, `{command}` continues it."
    return f"Try {remedy}, or check {check}: {guides('few-images', 'read-the-curves')}."


def _without_levels(run: RunFolder, name: str, value: float) -> str:
    for metric, unit in _MAIN_METRICS.items():
        values = run.series(metric)[1]
        if values:
            best = f"{metric} is {values[-1]:.4g}{unit}, at best {max(values):.4g}{unit}"
            return f"{best}. The {name} of training is {value:.4g}."
    if run.options.get("phase", "pretrain") != "pretrain":
        return f"Unknown: the {name} is {value:.4g}, and no epoch has ended with an evaluation yet."
    return f"Unknown: the {name} is {value:.4g}, but the run has no losses of trivial predictors to compare it with."
