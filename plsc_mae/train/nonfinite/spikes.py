"""Tells of losses and gradient norms far above their recent course, with the images behind them; changes nothing."""

from __future__ import annotations

import collections
import json
import logging
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plsc_mae.train.log.append_file import replace_content

logger = logging.getLogger(__name__)

RECENT, ENOUGH = 100, 50  # updates that are looked back on, and that must have been seen
# Robust standard deviations: losses scatter by less, and of gradient norms, whose logarithms scatter by about 0.5, one
# in several thousand goes beyond. Where nothing scatters, a percent of the usual value stands in for one.
FAR, LEAST = 10.0, 0.01
DEVIATION_OF_MAD = 1.4826  # of a normal distribution
WARNINGS_APART = 100  # updates


class Course:
    """The recent values of a number."""

    def __init__(self) -> None:
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)

    def follow(self, value: float) -> float | None:
        """Take a value in; returns the usual value if this one lies far above it."""
        usual, limit = self._usual_and_limit() if len(self._recent) >= ENOUGH else (value, value)
        self._recent.append(value)
        return usual if value > limit else None

    def _usual_and_limit(self) -> tuple[float, float]:
        usual = statistics.median(self._recent)
        spread = DEVIATION_OF_MAD * statistics.median(abs(value - usual) for value in self._recent)
        return usual, usual + FAR * max(spread, LEAST * abs(usual))


class SpikeReport:
    """Follows the numbers of a run and writes a line of JSON for each spike.

    Args:
        path: of the file.
        active: whether this process writes it.
    """

    def __init__(self, path: Path, *, active: bool) -> None:
        self.path, self.active = path, active
        self._courses: dict[str, Course] = collections.defaultdict(Course)
        self._warned: dict[str, int] = {}

    def start(self, step: int) -> None:
        """Begin after an update; lines from beyond, left by a killed run, are dropped."""
        if self.active and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            replace_content(self.path, "".join(f"{line}\n" for line in lines if _step(line) <= step).encode())

    def follow(self, step: int, values: Mapping[str, float], describe: Callable[[], dict[str, Any]]) -> None:
        """Look at the numbers of an update.

        Args:
            step: its number.
            values: by name.
            describe: what else is written of an update with a spike.
        """
        for name, value in values.items():
            usual = self._courses[name].follow(value)
            if usual is not None and self.active:
                self._write({"step": step, "what": name, "value": value, "usual": usual, **describe()})
                self._warn(step, name, value, usual)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            logger.warning("cannot write %s: %s", self.path, error.strerror)

    def _warn(self, step: int, name: str, value: float, usual: float) -> None:
        if step - self._warned.get(name, -WARNINGS_APART) >= WARNINGS_APART:
            self._warned[name] = step
            text = "spike at step %d: %s %.4g, usually %.4g; %s has the images, further ones of the next %d steps too"
            logger.warning(text, step, name, value, usual, self.path, WARNINGS_APART)


def _step(line: str) -> float:
    """The update a line is about; the last line of a killed run may be cut off, and is of none."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")
