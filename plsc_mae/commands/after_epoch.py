"""After every epoch of a classifier's training: its results per class, and an early hint if it learns nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.class_counts import ClassCounts, chance_accuracy, describe_imbalance
from plsc_mae.analysis.confusion import Counts
from plsc_mae.commands.next_steps import RATE_PAGES
from plsc_mae.config import ClassifyConfig, FinetuneConfig
from plsc_mae.data.classes import ClassOrder
from plsc_mae.report.run_folder import is_number, read_lines
from plsc_mae.train.checkpoint.state import Progress
from plsc_mae.train.class_results import ClassResultsWriter, EpochCounts
from plsc_mae.train.observers.base import Evaluation
from plsc_mae.train.scaling import epochs_to_learn, remedy_at_chance

FALLEN, RISEN = 0.95, 1.1  # a training loss between these multiples of an earlier epoch mean has not moved
CLOSE = 0.98  # a loss below this multiple of that of the class shares is better than they are

logger = logging.getLogger(__name__)


class AfterEpoch:
    """Callback of the main process after each epoch, see `Trainer`.

    Args:
        config: options of the run.
        evaluation: evaluation of the validation images, which counts the results per class.
        order: classes of the run.
        labels: labels of the training images; class numbers [n] if the evaluation counts the results per class.
    """

    def __init__(
        self, config: ClassifyConfig, evaluation: Evaluation, order: ClassOrder, labels: npt.NDArray[Any]
    ) -> None:
        self.config, self.evaluation, self.order = config, evaluation, order
        self.labels = labels
        self.results = ClassResultsWriter(Path(config.output_dir))

    def __call__(self, at: Progress) -> None:
        """Write the results per class of the epoch before position `at` and, in one epoch of the run, give the hint."""
        counts = self.evaluation.counts
        if counts is None:
            return
        outputs = len(counts.images)
        names = [*self.order.names, *map(str, range(len(self.order.names), outputs))]
        trained = np.bincount(self.labels, minlength=outputs)
        self.results.write(names, EpochCounts(at.epoch - 1, at.step, counts), at.best_step, trained)
        if at.epoch == hint_epoch(self.config, at.step / at.epoch):
            records = read_lines(Path(self.config.output_dir) / "log.txt")
            smoothing = self.config.smoothing if isinstance(self.config, FinetuneConfig) else 0.0
            balanced = self.config.balance_classes
            level = loss_of_shares(np.sign(trained) if balanced else trained, smoothing)
            if learns_nothing(records, counts, at.best, level, balanced=balanced):
                self._hint(at, chance_accuracy(counts.images, balanced=balanced), trained)

    def _hint(self, at: Progress, limit: float, trained: Counts) -> None:
        unbalanced = "" if self.config.balance_classes else describe_imbalance(trained)
        logger.warning(
            "after %d of %d epochs the network is still at chance: %s %.4g, the best so far, is no more than "
            "luck (up to %.4g), and train_loss and test_loss have hardly fallen, or no further than the frequencies of "
            "the classes explain; stop the run with Ctrl-C and start another with %s: %s%s",
            *(at.epoch, self.config.epochs),
            *("test_balanced_acc" if self.config.balance_classes else "test_acc1", at.best, limit),
            *(remedy_at_chance(self.config), RATE_PAGES, f"; {unbalanced}" if unbalanced else ""),
        )


def hint_epoch(config: ClassifyConfig, updates_per_epoch: float) -> int:
    """Return the number of finished epochs after which a run that learns nothing gets a hint; 0 for never.

    Beyond half of the run, the warning at its end is soon enough.
    """
    epoch = epochs_to_learn(config, updates_per_epoch)
    return epoch if epoch <= config.epochs / 2 else 0


def loss_of_shares(images: Counts, smoothing: float = 0.0) -> float:
    """Return the mean cross entropy of the best prediction that ignores the images: the shares of the classes.

    Mixup and CutMix do not change it, because they mix labels in equal proportions.

    Args:
        images: number of images [K] of each class.
        smoothing: label smoothing, which moves the shares toward 1 / K.
    """
    shares = (1 - smoothing) * images / images.sum() + smoothing / len(images)
    shares = shares[shares > 0]
    return -float(np.sum(shares * np.log(shares)))


def learns_nothing(records: Any, counts: ClassCounts, best: float, level: float, *, balanced: bool = False) -> bool:
    """Return whether accuracy and both losses of a run are still those of predictions that ignore the images.

    A training loss that has fallen to that of the class shares shows that their frequencies are learned, and no more.

    Args:
        records: lines of log.txt.
        counts: results per class after the newest epoch.
        best: largest test_acc1 or, if `balanced`, test_balanced_acc so far, in percent.
        level: training loss of the class shares, see `loss_of_shares`.
        balanced: whether training draws every class equally often.
    """
    images = np.sign(counts.images) if balanced else counts.images
    trained, tested = (
        [record[name] for record in records if is_number(record.get(name))] for name in ("train_loss", "test_loss")
    )
    if not trained or not tested or not best <= chance_accuracy(counts.images, balanced=balanced) < 100:
        return False
    risen = max(trained) >= RISEN * trained[0]
    falling = trained[-1] <= FALLEN * trained[len(trained) // 2]
    learned = min(trained) <= min(FALLEN * trained[0], CLOSE * level)
    return not (risen or falling or learned) and min(tested) > CLOSE * loss_of_shares(images)
