"""Exchange of the losses of all processes and the gradient norm before an update."""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.parallel.world import World

# An all-reduce may drop non-finite values, so they are encoded as finite numbers that no loss reaches.
NAN, INFINITE, ABSENT = 3.3e38, 3.2e38, -3.3e38


class UpdateNumbers(NamedTuple):
    """Losses and gradient norm of an update, with equal values in all processes.

    Attributes:
        losses: loss of every process in the order of their numbers, averaged over its iterations of the accumulation
            group; with pipeline parallelism only the values of the last stage's processes are losses.
        norm: global gradient norm without the loss scale, before clipping.
    """

    losses: list[float]
    norm: float

    @property
    def bad_losses(self) -> list[int]:
        """Numbers of the processes whose loss is not finite."""
        return [process for process, loss in enumerate(self.losses) if not math.isfinite(loss)]

    @property
    def finite(self) -> bool:
        """True if all losses and the norm are finite."""
        return math.isfinite(self.norm) and not self.bad_losses


def exchange_numbers(world: World, loss: Tensor, norm: Tensor) -> UpdateNumbers:
    """Exchange loss and gradient norm between all processes in one small all-reduce and one wait for the device.

    Args:
        world: processes of the run; all of them must call.
        loss: loss of this process, a scalar.
        norm: gradient norm, a scalar.
    """
    own = paddle.stack([norm.astype("float32"), loss.astype("float32")])
    own = paddle.where(paddle.isnan(own), paddle.full_like(own, NAN), own.clip(-INFINITE, INFINITE))
    before, after = world.process, world.processes - 1 - world.process
    parts = [own[:1], paddle.full([before], ABSENT), own[1:], paddle.full([after], ABSENT)]
    norm_code, *codes = world.largest(paddle.concat([part for part in parts if part.shape[0]]))
    return UpdateNumbers([_decode(code) for code in codes], _decode(norm_code))


def _decode(code: float) -> float:
    if code > (NAN + INFINITE) / 2:
        return math.nan
    return code if abs(code) < INFINITE * (1 - 1e-6) else math.copysign(math.inf, code)
