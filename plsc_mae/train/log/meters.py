"""Running means and times of a training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.methods.base import Batch
from plsc_mae.parallel.world import World


class Meters:
    """Sums and counts of the finite values of named scalars, added up on the device.

    The sums are float64, in which float32 values of similar size add up without rounding. So a run that was stopped and
    resumed logs the same means as an uninterrupted run, also with several processes.

    Attributes:
        left_out: number of non-finite values by name, as counted by the last call of `means`; zero counts are absent.
    """

    def __init__(self) -> None:
        self.left_out: dict[str, int] = {}
        self.clear()

    def add(self, values: Values) -> None:
        """Add the result of `finite_values`, without waiting for the device."""
        if values.names in self._sums:
            self._sums[values.names] += values.sums_and_counts
        else:
            self._sums[values.names] = values.sums_and_counts.clone()
        self._added[values.names] = self._added.get(values.names, 0.0) + 1.0

    def means(self, world: World) -> dict[str, float]:
        """Return the means over the data-parallel processes by name; all of them must call.

        This takes one all-reduce and one transfer from the device. Names without a finite value are absent.
        """
        totals = self._totals(world)
        self.left_out = {name: round(added - count) for name, (_, count, added) in totals.items() if added > count}
        return {name: total / count for name, (total, count, _) in totals.items() if count}

    def clear(self) -> None:
        """Remove all values."""
        self._sums: dict[tuple[str, ...], Tensor] = {}  # [2, n]: sums and counts of scalars that came together
        self._added: dict[tuple[str, ...], float] = {}

    def state(self, world: World) -> dict[str, Any]:
        """Return sums and counts over the data-parallel processes, for a checkpoint; all of them must call."""
        return {name: {"sum": total, "count": count} for name, (total, count, _) in self._totals(world).items()}

    def load(self, state: Mapping[str, Mapping[str, Any]], world: World) -> None:
        """Restore the result of `state`; the first data-parallel process takes the sums, the others start from zero."""
        share = 1.0 if world.rank == 0 else 0.0
        self.clear()
        for name, entry in state.items():
            numbers = [[share * float(entry["sum"])], [share * float(entry["count"])]]
            self._sums[name,] = paddle.to_tensor(numbers, dtype="float64")
            self._added[name,] = share * float(entry["count"])

    def _totals(self, world: World) -> dict[str, tuple[float, float, float]]:
        """Return (sum, finite count, total count) by name, over all data-parallel processes; all of them must call."""
        if not self._sums:
            return {}
        names = [name for group in self._sums for name in group]
        added = [count for group, count in self._added.items() for _ in group]
        parts = [paddle.concat(list(self._sums.values()), axis=1), paddle.to_tensor([added], dtype="float64")]
        totals: dict[str, tuple[float, float, float]] = {}
        for name, *numbers in zip(names, *world.sum(paddle.concat(parts)).tolist(), strict=True):
            total, count, all_added = (sum(pair) for pair in zip(totals.get(name, (0, 0, 0)), numbers, strict=True))
            totals[name] = total, count, all_added
        return totals


class Values(NamedTuple):
    """Scalars of one iteration, for `Meters.add`."""

    names: tuple[str, ...]  # names of the scalars
    # float64 [2, n]. Row 0 has the values, with 0 in place of non-finite ones; row 1
    # has 1 for each finite value and 0 for each non-finite one.
    sums_and_counts: Tensor


def finite_values(values: Mapping[str, Tensor]) -> Values:
    """Return scalar tensors as `Values`, without waiting for the device."""
    scalars = paddle.stack([value.detach().astype("float64") for value in values.values()])
    finite = paddle.isfinite(scalars)
    values_or_zeros = paddle.where(finite, scalars, paddle.zeros_like(scalars))
    return Values(tuple(values), paddle.stack([values_or_zeros, finite.astype("float64")]))


class Stopwatch:
    """Timer of consecutive laps that also measures the wait for data."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.started = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield `batches` and add up the time spent waiting for them."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def lap(self) -> tuple[float, float]:
        """End the lap and start the next; return (seconds, fraction of them spent waiting for data)."""
        seconds, waited = self.current()
        self.started, self.waited = self.started + seconds, 0.0
        return seconds, waited

    def current(self) -> tuple[float, float]:
        """Return (seconds, fraction of them spent waiting for data) of the lap so far."""
        seconds = time.perf_counter() - self.started
        return seconds, self.waited / max(seconds, 1e-9)
