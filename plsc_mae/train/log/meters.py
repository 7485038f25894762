"""Running means and times of a training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import paddle
from paddle import Tensor

from plsc_mae.methods.base import Batch
from plsc_mae.parallel.world import World


class Meters:
    """Sums and counts of the finite values of named scalars, kept on the device until `means` is called.

    The sums are float64, so that the order of summation does not change the logged means: a run that was stopped and
    resumed logs the same means as an uninterrupted run, also with several processes.

    Attributes:
        left_out: number of non-finite values by name, as counted by the last call of `means`; zero counts are absent.
    """

    def __init__(self) -> None:
        self.left_out: dict[str, int] = {}
        self.clear()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add scalar tensors by name, without waiting for the device."""
        for name, value in values.items():
            value = value.detach().astype("float64")
            finite = paddle.isfinite(value)
            count, value = finite.astype("float64"), paddle.where(finite, value, paddle.zeros_like(value))
            if name in self._sums:
                value, count = self._sums[name] + value, self._counts[name] + count
            self._sums[name], self._counts[name] = value, count
            self._added[name] = self._added.get(name, 0.0) + 1.0

    def means(self, world: World) -> dict[str, float]:
        """Return the means over all processes by name; all processes must call.

        This takes one all-reduce and one transfer from the device. Names without a finite value are absent.
        """
        totals = self._totals(world)
        self.left_out = {name: round(added - count) for name, (_, count, added) in totals.items() if added > count}
        return {name: total / count for name, (total, count, _) in totals.items() if count}

    def clear(self) -> None:
        """Remove all values."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._added: dict[str, float] = {}

    def state(self, world: World) -> dict[str, Any]:
        """Return the sums and counts over all processes, for a checkpoint; all processes must call."""
        return {name: {"sum": total, "count": count} for name, (total, count, _) in self._totals(world).items()}

    def load(self, state: Mapping[str, Mapping[str, Any]], world: World) -> None:
        """Restore the result of `state`: the first data-parallel process takes the sums, the others start from zero."""
        share = 1.0 if world.rank == 0 else 0.0
        self._sums = {name: _float64(share * float(entry["sum"])) for name, entry in state.items()}
        self._counts = {name: _float64(share * float(entry["count"])) for name, entry in state.items()}
        self._added = {name: share * float(entry["count"]) for name, entry in state.items()}

    def _totals(self, world: World) -> dict[str, tuple[float, float, float]]:
        """Return (sum, finite count, total count) by name, over all data-parallel processes; all of them must call."""
        if not self._sums:
            return {}
        added = paddle.to_tensor(list(self._added.values()), dtype="float64")
        parts = [paddle.stack(list(self._sums.values())), paddle.stack(list(self._counts.values())), added]
        numbers, n = world.sum(paddle.concat(parts)).tolist(), len(self._sums)
        return dict(zip(self._sums, zip(numbers[:n], numbers[n : 2 * n], numbers[2 * n :], strict=True), strict=True))


def _float64(value: float) -> Tensor:
    return paddle.to_tensor(value, dtype="float64")


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
