"""Running means that stay on the device until somebody looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle
from paddle import Tensor

from plsc_mae.parallel.world import World


class Meters:
    """Sums and counts of the finite values of named scalars; `means` is the only point that waits for the device.

    In float64 the order of a sum does not show, so the means of a run that was stopped and goes on are those of one
    that was not, also where several processes have parts of them.

    Attributes:
        left_out: how many values of a name were not finite, when `means` last looked; only those that had some.
    """

    def __init__(self) -> None:
        self.left_out: dict[str, int] = {}
        self.clear()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add scalar tensors without looking at them."""
        for name, value in values.items():
            value = value.detach().astype("float64")
            finite = paddle.isfinite(value)
            count, value = finite.astype("float64"), paddle.where(finite, value, paddle.zeros_like(value))
            if name in self._sums:
                value, count = self._sums[name] + value, self._counts[name] + count
            self._sums[name], self._counts[name] = value, count
            self._added[name] = self._added.get(name, 0.0) + 1.0

    def means(self, world: World) -> dict[str, float]:
        """Means over what was added, by all processes, in one reduction and one transfer.

        A name without any finite value is not there.
        """
        totals = self._totals(world)
        self.left_out = {name: round(added - count) for name, (_, count, added) in totals.items() if added > count}
        return {name: total / count for name, (total, count, _) in totals.items() if count}

    def clear(self) -> None:
        """Start over."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._added: dict[str, float] = {}

    def state(self, world: World) -> dict[str, Any]:
        """What a checkpoint needs to go on with the same means: sums and counts over all processes."""
        return {name: {"sum": total, "count": count} for name, (total, count, _) in self._totals(world).items()}

    def load(self, state: Mapping[str, Mapping[str, Any]], world: World) -> None:
        """Put back what `state` gave: the first part of the data goes on with the sums, the others from zero."""
        share = 1.0 if world.rank == 0 else 0.0
        self._sums = {name: _float64(share * float(entry["sum"])) for name, entry in state.items()}
        self._counts = {name: _float64(share * float(entry["count"])) for name, entry in state.items()}
        self._added = {name: share * float(entry["count"]) for name, entry in state.items()}

    def _totals(self, world: World) -> dict[str, tuple[float, float, float]]:
        """Sum, count of finite values and of all values by name, over the processes that share the data."""
        if not self._sums:
            return {}
        added = paddle.to_tensor(list(self._added.values()), dtype="float64")
        parts = [paddle.stack(list(self._sums.values())), paddle.stack(list(self._counts.values())), added]
        numbers, n = world.sum(paddle.concat(parts)).tolist(), len(self._sums)
        return dict(zip(self._sums, zip(numbers[:n], numbers[n : 2 * n], numbers[2 * n :], strict=True), strict=True))


def _float64(value: float) -> Tensor:
    return paddle.to_tensor(value, dtype="float64")
