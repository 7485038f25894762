"""The answer to "is it learning?": the loss of a run beside those of trivial predictors on the same hidden patches."""

from __future__ import annotations

from typing import NamedTuple

from plsc_mae.analysis.trivial import DESCRIPTIONS
from plsc_mae.report.run_folder import RunFolder


class Verdict(NamedTuple):
    """The answer and its reason.

    Attributes:
        learning: whether the loss is below those of all trivial predictors; None if the run has no such losses.
        text: the answer in a sentence or two.
        loss: name of the compared loss.
        value: its newest value; None without one.
        levels: losses of trivial predictors by their descriptions.
    """

    learning: bool | None
    text: str
    loss: str
    value: float | None
    levels: dict[str, float]


def judge(run: RunFolder) -> Verdict:
    """Compare the newest loss of a run, see `RunFolder.last_loss`, with the losses of trivial predictors."""
    name = str(run.trivial.get("loss", "loss"))
    levels = {DESCRIPTIONS.get(key, key): float(loss) for key, loss in run.trivial.get("losses", {}).items()}
    value, (_, curve) = run.last_loss(name), run.series(name)
    fall = f" It started at {curve[0]:.4g}." if curve else ""
    if value is None:
        return Verdict(None, f"Unknown: the logs have no finite value of {name}.", name, value, levels)
    if not levels:
        accuracies = run.series("test_acc1")[1]
        text = f"The {name} is {value:.4g}.{fall} The run has no losses of trivial predictors to compare it with."
        if accuracies:
            best_accuracy = f"test_acc1 is {accuracies[-1]:.4g} %, at best {max(accuracies):.4g} %"
            text = f"{best_accuracy}. The {name} of training is {value:.4g}.{fall}"
        return Verdict(None, text, name, value, levels)
    label, best = min(levels.items(), key=lambda item: item[1])
    if value < best:
        share = 1 - value / best
        text = f"Yes: the {name} is {value:.4g}, {share:.1%} below the best trivial predictor, {label} ({best:.4g})."
        return Verdict(True, text + fall, name, value, levels)
    beaten = [f"{text} ({level:.4g})" for text, level in levels.items() if value < level]
    behind = [f"{text} ({level:.4g})" for text, level in levels.items() if value >= level]
    above = f"Not yet: the {name} is {value:.4g}, not below {', '.join(behind)}"
    return Verdict(
        False, above + (f"; it is below {', '.join(beaten)}." if beaten else ".") + fall, name, value, levels
    )
