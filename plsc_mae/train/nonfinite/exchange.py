"""Exchange of losses, gradient norm and stop signals between all processes before an update."""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.parallel.world import World

# An all-reduce may drop non-finite values, so they are encoded as finite numbers that no loss reaches.
NAN, INFINITE, ABSENT = 3.3e38, 3.2e38, -3.3e38


class UpdateNumbers(NamedTuple):
    """Losses, gradient norm and stop signal of an update, with equal values in all processes."""

    # loss of every process in the order of the processes, averaged over its iterations of the accumulation group; with
    # pipeline parallelism, processes of other stages than the last have 0
    losses: list[float]
    norm: float  # global gradient norm without the loss scale, before clipping
    stop: int  # largest number of the stop signals that the processes have received; 0 without any

    @property
    def bad_losses(self) -> list[int]:
        """Indices of the processes whose loss is not finite."""
        return [process for process, loss in enumerate(self.losses) if not math.isfinite(loss)]

    @property
    def finite(self) -> bool:
        """True if all losses and the norm are finite."""
        return math.isfinite(self.norm) and not self.bad_losses


def exchange_numbers(world: World, loss: Tensor, norm: Tensor, stop: int) -> UpdateNumbers:
    """Return the numbers of an update in all processes, after one small all-reduce and one wait for the device.

    Args:
        world: processes of the run; all of them must call.
        loss: loss of this process, a scalar.
        norm: gradient norm, a scalar.
        stop: number of the stop signal that this process has received, or 0.
    """
    own = paddle.stack([norm.astype("float32"), loss.astype("float32")])
    own = paddle.where(paddle.isnan(own), paddle.full_like(own, NAN), own.clip(-INFINITE, INFINITE))
    before, after = world.process, world.processes - 1 - world.process
    parts = [own[:1], *_fill(before, ABSENT), own[1:], *_fill(after, ABSENT), *_fill(1, stop)]
    norm_code, *codes, largest_stop = world.largest(paddle.concat(parts))
    return UpdateNumbers([_decode(code) for code in codes], _decode(norm_code), int(largest_stop))


def _fill(count: int, value: float) -> list[Tensor]:
    """Return a list of one float32 tensor with `count` elements equal to `value`; [] if `count` is 0."""
    return [paddle.full([count], value, "float32")] if count else []


def _decode(code: float) -> float:
    if code > (NAN + INFINITE) / 2:
        return math.nan
    return code if abs(code) < INFINITE * (1 - 1e-6) else math.copysign(math.inf, code)
