"""Report of losses and gradient norms far above their recent values, with images that may be the cause."""

from __future__ import annotations

import collections
import json
import logging
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plsc_mae.errors import CheckpointError, flag
from plsc_mae.names import as_json
from plsc_mae.train.log.append_file import replace_content

logger = logging.getLogger(__name__)

WINDOW = 100  # number of recent updates with which a value is compared
MIN_UPDATES = 50  # updates before the first comparison
# Threshold in robust standard deviations. The logarithms of gradient norms scatter by about 0.5, so one norm in several
# thousand exceeds it; losses scatter less. MIN_SPREAD, relative to the median, is the lower bound of their spread.
MAX_DEVIATIONS, MIN_SPREAD = 10.0, 0.01
STD_PER_MAD = 1.4826  # standard deviation / median absolute deviation of a normal distribution
# Spikes in a row, and a multiple of the median, that are worth a warning. Small batches have others without
# consequences: seven trainings of classifiers with 16 images per update had 21 in 4605 updates, at most two in a row,
# and an eighth one a gradient norm of 21 times the median.
LASTING, HUGE = 3, 100.0
WARNING_INTERVAL = 100  # smallest number of updates between two warnings about the same quantity


class RecentValues:
    """Recent values of one quantity, such as the loss."""

    def __init__(self) -> None:
        self._values: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def follow(self, value: float) -> float | None:
        """Add a value and return the median of the earlier ones if the value is a spike, else None."""
        median, limit = self._median_and_limit() if len(self._values) >= MIN_UPDATES else (value, value)
        self._values.append(value)
        return median if value > limit else None

    def _median_and_limit(self) -> tuple[float, float]:
        median = statistics.median(self._values)
        spread = STD_PER_MAD * statistics.median(abs(value - median) for value in self._values)
        return median, median + MAX_DEVIATIONS * max(spread, MIN_SPREAD * abs(median))


class SpikeReport:
    """Log of the spikes of a run, with one line of JSON per spike."""

    def __init__(self, path: Path, *, active: bool) -> None:
        self.path, self.active = path, active
        self._recent: dict[str, RecentValues] = collections.defaultdict(RecentValues)
        self._in_a_row: collections.Counter[str] = collections.Counter()
        self._warned: dict[str, int] = {}

    def start(self, step: int) -> None:
        """Start after update `step`, and remove damaged lines and those of later updates, which a killed run has left.

        Raises:
            CheckpointError: the file cannot be read or written.
        """
        if self.active and self.path.exists():
            try:
                lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
                replace_content(self.path, "".join(f"{line}\n" for line in lines if _step(line) <= step).encode())
            except OSError as error:
                raise CheckpointError(
                    f"cannot write {self.path}: {error.strerror}; free the disk or its quota"
                ) from None

    def follow(self, step: int, values: Mapping[str, float], describe: Callable[[], dict[str, Any]]) -> None:
        """Compare the values of an update with recent ones; if active, write a line for each spike.

        A warning is logged of the LASTING-th spike of a value in a row, and of one beyond HUGE times the median;
        warnings about the same value are at least WARNING_INTERVAL updates apart.

        Args:
            step: number of the update, counted from 1.
            values: the update's values by name.
            describe: returns further fields for the line; called only for a spike.
        """
        for name, value in values.items():
            usual = self._recent[name].follow(value)
            self._in_a_row[name] = 0 if usual is None else self._in_a_row[name] + 1
            if usual is not None and self.active:
                record = {"step": step, "what": name, "value": value, "usual": usual, **describe()}
                self._write(record)
                if self._in_a_row[name] >= LASTING or value > HUGE * usual:
                    self._warn(record)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(as_json(record) + "\n")
        except OSError as error:
            logger.warning("cannot write %s: %s", self.path, error.strerror)

    def _warn(self, record: Mapping[str, Any]) -> None:
        step, name = record["step"], record["what"]
        if step - self._warned.get(name, -WARNING_INTERVAL) >= WARNING_INTERVAL:
            self._warned[name] = step
            logger.warning(
                "%s %.4g at step %d (epoch %s), far above the usual %.4g; %s lists the images of such updates; nothing "
                "is to be done if it returns, otherwise lower the learning rate or give %s 3",
                *(name, record["value"], step, record.get("epoch"), record["usual"], self.path, flag("clip_grad")),
            )


def _step(line: str) -> float:
    """Return the update number of a line, or infinity if the line is damaged, for example truncated by a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return float("inf")
