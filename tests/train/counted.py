"""The command line of a run of 4 updates whose waits and transfers are counted: python counted.py COMMAND ...

The run prints its `Counts` as JSON.
"""

from __future__ import annotations

import collections
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import paddle

from plsc_mae.cli import main
from plsc_mae.data import loader
from plsc_mae.train.trainer import Trainer

# Methods of Tensor that copy to the host or wait; `set_value` of a tensor goes through the host in Paddle 2.6.
WAITS = (
    *("numpy", "__array__", "item", "tolist", "__float__", "__bool__", "__int__", "__index__", "cpu"),
    "set_value",
)


class Counts:
    """Waits and transfers in the training loop, from the making of the second update's batch to the last update's end.

    Attributes:
        updates: number of updates.
        iterations: number of iterations.
        waits: calls of the methods in WAITS by method and function.
        transfers: calls of `paddle.to_tensor` by function.
        arrays: names of the tensors in a batch.
    """

    def __init__(self) -> None:
        self.updates = self.iterations = 0
        self.waits, self.transfers = collections.Counter[str](), collections.Counter[str]()
        self.arrays: list[str] = []
        self.active = False

    def per_update(self) -> dict[str, float]:
        """Return the waits per update."""
        return {place: times / self.updates for place, times in self.waits.items()}

    def per_iteration(self) -> dict[str, float]:
        """Return the transfers per iteration."""
        return {place: times / self.iterations for place, times in self.transfers.items()}

    def counting(self, places: collections.Counter[str], name: str, function: Callable) -> Callable:
        """Return `function` so that its calls are counted; calls that it makes itself are not."""

        def wrapped(*args: Any, **options: Any) -> Any:
            if not self.active:
                return function(*args, **options)
            self.active = False
            try:
                places[f"{name} {caller()}"] += 1
                return function(*args, **options)
            finally:
                self.active = True

        return wrapped


@contextlib.contextmanager
def counted(last: int) -> Iterator[Counts]:
    """Count within the context, which makes one run of `last` updates, in one process and without log lines."""
    counts, done = Counts(), 0
    iterate, device_batch = Trainer.iterate, loader.device_batch

    def counted_batch(arrays: dict[str, Any]) -> dict[str, Any]:
        counts.active = done > 0
        return device_batch(arrays)

    def counted_iterate(self: Trainer, batch: dict[str, Any]) -> None:
        nonlocal done
        iterate(self, batch)
        if counts.active:
            counts.iterations += 1
            counts.updates += self.progress.step - done
        counts.arrays = sorted(name for name, value in batch.items() if isinstance(value, paddle.Tensor))
        done = self.progress.step
        counts.active = counts.active and done < last

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Trainer, "iterate", counted_iterate))
        patches.enter_context(mock.patch.object(loader, "device_batch", counted_batch))
        to_tensor = counts.counting(counts.transfers, "to_tensor", paddle.to_tensor)
        patches.enter_context(mock.patch.object(paddle, "to_tensor", to_tensor))
        for name in WAITS:
            if hasattr(paddle.Tensor, name):
                method = counts.counting(counts.waits, name, getattr(paddle.Tensor, name))
                patches.enter_context(mock.patch.object(paddle.Tensor, name, method))
        yield counts


def caller() -> str:
    """Return the innermost file and function of plsc_mae that is being run, apart from `to_device`."""
    frame = sys._getframe(2)
    skipped = ("to_device", "<dictcomp>")
    while frame.f_back and ("plsc_mae/" not in frame.f_code.co_filename or frame.f_code.co_name in skipped):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.split('plsc_mae/')[-1]} {frame.f_code.co_name}"


if __name__ == "__main__":
    with counted(4) as found:
        code = main(sys.argv[1:])
    print(json.dumps([found.updates, found.per_update(), found.per_iteration(), found.arrays]), flush=True)
    sys.exit(code)
