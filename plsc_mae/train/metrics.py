"""Running means that stay on the device until somebody looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle
from paddle import Tensor

from plsc_mae.parallel.data import World


class Meters:
    """Sums and counts of named scalars; `means` is the only point that waits for the device.

    In float64 the order of a sum does not show, so the means of a run that was stopped and goes on are those of one
    that was not, also where several processes have parts of them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add scalar tensors without looking at them."""
        for name, value in values.items():
            value = value.detach().astype("float64")
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self, world: World) -> dict[str, float]:
        """Means over what was added, by all processes, in one reduction and one transfer."""
        totals = self._totals(world)
        half = len(self._sums)
        return {name: totals[i] / totals[half + i] for i, name in enumerate(self._sums)}

    def clear(self) -> None:
        """Start over."""
        self._sums, self._counts = {}, {}

    def state(self, world: World) -> dict[str, Any]:
        """What a checkpoint needs to go on with the same means: sums and counts over all processes."""
        totals = self._totals(world)
        half = len(self._sums)
        return {name: {"sum": totals[i], "count": totals[half + i]} for i, name in enumerate(self._sums)}

    def load(self, state: Mapping[str, Mapping[str, Any]], world: World) -> None:
        """Put back what `state` gave: the first part of the data goes on with the sums, the others from zero."""
        share = 1 if world.rank == 0 else 0
        self._sums = {
            name: paddle.to_tensor(share * float(entry["sum"]), dtype="float64") for name, entry in state.items()
        }
        self._counts = {name: share * int(entry["count"]) for name, entry in state.items()}

    def _totals(self, world: World) -> list[float]:
        if not self._sums:
            return []
        counts = paddle.to_tensor([float(self._counts[name]) for name in self._sums], dtype="float64")
        return world.sum(paddle.concat([paddle.stack(list(self._sums.values())), counts])).tolist()
