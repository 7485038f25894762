"""What all processes know of an update before it is made: every loss and the gradient's norm, finite or not."""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.parallel.world import World

# Reductions may lose what is not finite, so it travels as numbers that no loss reaches.
NAN, INFINITE, ABSENT = 3.3e38, 3.2e38, -3.3e38


class UpdateNumbers(NamedTuple):
    """The numbers of an update, the same in all processes.

    Attributes:
        losses: of every process, means over its iterations of the group; of pipelines the last stages know it.
        norm: of the gradient, before clipping.
    """

    losses: list[float]
    norm: float

    @property
    def bad_losses(self) -> list[int]:
        """Processes whose loss is not finite."""
        return [process for process, loss in enumerate(self.losses) if not math.isfinite(loss)]

    @property
    def finite(self) -> bool:
        """Whether an update can be made of it."""
        return math.isfinite(self.norm) and not self.bad_losses


def agree(world: World, loss: Tensor, norm: Tensor) -> UpdateNumbers:
    """Tell the other processes of an update's numbers, in one small reduction and one wait for the device.

    Args:
        world: the processes of the run; all of them must call.
        loss: of this process.
        norm: of the gradient.
    """
    own = paddle.stack([norm.astype("float32"), loss.astype("float32")])
    own = paddle.where(paddle.isnan(own), paddle.full_like(own, NAN), own.clip(-INFINITE, INFINITE))
    before, after = world.process, world.processes - 1 - world.process
    parts = [own[:1], paddle.full([before], ABSENT), own[1:], paddle.full([after], ABSENT)]
    norm_code, *codes = world.largest(paddle.concat([part for part in parts if part.shape[0]]))
    return UpdateNumbers([_decoded(code) for code in codes], _decoded(norm_code))


def _decoded(code: float) -> float:
    if code > (NAN + INFINITE) / 2:
        return math.nan
    return code if abs(code) < INFINITE * (1 - 1e-6) else math.copysign(math.inf, code)
