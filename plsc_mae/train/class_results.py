"""Results per class after the newest and after the best epoch of a classifier's training: class_results.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plsc_mae.analysis.class_counts import ClassCounts
from plsc_mae.analysis.confusion import Counts
from plsc_mae.files import MARK, result_replacement
from plsc_mae.names import as_json
from plsc_mae.train.checkpoint.folder import CLASS_RESULTS

_LAST, _BEST, _TRAINED = "last", "best", "training_images"

logger = logging.getLogger(__name__)


class EpochCounts(NamedTuple):
    """Counts of the validation images after an epoch.

    Attributes:
        epoch: number of the epoch, from 0.
        step: number of finished updates.
        counts: counts of every class.
    """

    epoch: int
    step: int
    counts: ClassCounts


class ClassResults(NamedTuple):
    """Content of class_results.json.

    Attributes:
        names: names of the classes.
        last: counts after the newest epoch.
        best: counts after the epoch of checkpoint-best.pd; None if they are unknown.
        trained: number of training images [K] of each class; None if it is unknown.
    """

    names: Sequence[str]
    last: EpochCounts
    best: EpochCounts | None
    trained: Counts | None = None


def read_class_results(folder: Path) -> ClassResults | None:
    """Return the results in the output folder of a run; None if the file is missing or damaged."""
    try:
        content = json.loads((folder / CLASS_RESULTS).read_text(encoding="utf-8"))
        names = [str(name) for name in content["names"]]
        best, trained = content.get(_BEST), content.get(_TRAINED)
        return ClassResults(
            names,
            _read_entry(content[_LAST], len(names)),
            None if best is None else _read_entry(best, len(names)),
            None if trained is None else _read_counts(trained, len(names)),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


class ClassResultsWriter:
    """Writer of class_results.json.

    The content follows from the newest epoch and, if the best one is an earlier one, from the entry that the file has
    of it. So a resumed run ends with the same file as one that was not interrupted.

    Args:
        folder: output folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._warned = False

    def write(self, names: Sequence[str], last: EpochCounts, best_step: int, trained: Counts | None = None) -> None:
        """Replace the file; if it cannot be written, only warn, and only once.

        Args:
            names: names of the classes.
            last: counts after the epoch that has just ended.
            best_step: number of finished updates after the best epoch; -1 without one.
            trained: number of training images [K] of each class; None leaves it out.
        """
        best: EpochCounts | None = last
        if best_step != last.step:
            earlier = read_class_results(self.folder)
            known = earlier.best if earlier is not None and list(earlier.names) == list(names) else None
            best = known if known is not None and known.step == best_step else None
        entries = {_LAST: _entry(last), _BEST: None if best is None else _entry(best)}
        shared: dict[str, Any] = {"names": list(names)}
        if trained is not None:
            shared[_TRAINED] = trained.tolist()
        path = self.folder / CLASS_RESULTS
        try:
            with result_replacement(path) as temporary:
                content = as_json({"origin": MARK, **shared, **entries})
                temporary.write_text(content + "\n", encoding="utf-8")
        except OSError as error:
            if not self._warned:
                logger.warning("cannot write %s: %s; the report will lack results per class", path, error.strerror)
            self._warned = True


def _entry(found: EpochCounts) -> dict[str, Any]:
    counts = {name: values.tolist() for name, values in found.counts._asdict().items()}
    return {"epoch": found.epoch, "step": found.step, **counts}


def _read_entry(entry: Mapping[str, Any], classes: int) -> EpochCounts:
    """Return the counts of an entry; raise ValueError, TypeError or KeyError if it is damaged."""
    counts = ClassCounts(*(_read_counts(entry[name], classes) for name in ClassCounts._fields))
    if counts.mistaken_for.max(initial=-1) >= classes:
        raise ValueError("the counts do not fit the names")
    return EpochCounts(int(entry["epoch"]), int(entry["step"]), counts)


def _read_counts(values: Any, classes: int) -> Counts:
    counts = np.asarray(values, np.int64)
    if counts.shape != (classes,):
        raise ValueError("the counts do not fit the names")
    return counts
