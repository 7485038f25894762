"""Pipeline parallelism: processes in a line, each with some of a network's blocks, through which parts of a batch pass.

The schedule is one forward, one backward (Narayanan et al. 2019, PipeDream-flush), so a stage keeps activations of as
many parts as stages follow it and not of a whole batch. Paddle's own (fleet's PipelineLayer) does not run on CPU and
wants networks written for it; here a stage is the whole network without the blocks of the others, under the same
names, and messages are plain ones of paddle.distributed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World

LATER, EARLIER = 0, 1  # members of a pair of neighbors


class RemoteLayer(nn.Layer):
    """Stands for layers that are in another process."""

    def forward(self, x: Tensor, **_options: Any) -> Tensor:
        """What comes in."""
        return x


def balanced_stages(costs: Sequence[float], stages: int) -> list[range]:
    """Divide blocks into consecutive stages such that the most expensive one is as cheap as can be.

    Args:
        costs: of the blocks, in any unit; no more stages than these.
        stages: how many.
    """
    sums = [0.0, *itertools.accumulate(costs)]
    count = len(costs)
    # best[k][n]: the least cost of the most expensive of k stages of the first n blocks, and where the last one starts
    best = [[(sums[n], 0) for n in range(count + 1)]]
    for k in range(1, stages):
        best.append(
            [
                min(((max(best[-1][m][0], sums[n] - sums[m]), m) for m in range(k, n)), default=(float("inf"), 0))
                for n in range(count + 1)
            ]
        )
    bounds = [count]
    for k in reversed(range(stages)):
        bounds.insert(0, best[k][bounds[0]][1])
    return [range(*bound) for bound in itertools.pairwise(bounds)]


class Line(NamedTuple):
    """This process's place in the line.

    Attributes:
        stage: from 0 at the images.
        stages: how many.
        previous: a pair with the stage before.
        following: a pair with the next stage.
    """

    stage: int
    stages: int
    previous: Group | None
    following: Group | None

    @classmethod
    def of(cls, world: World) -> Line:
        """The place of this process in a run."""
        return cls(world.stage, world.pipeline.size, world.previous, world.following)

    @property
    def is_first(self) -> bool:
        """Whether the images come in here."""
        return self.previous is None

    @property
    def is_last(self) -> bool:
        """Whether the loss comes out here."""
        return self.following is None


def pass_forward(
    line: Line, shapes: Sequence[Sequence[int]], stage: Callable[[int, Tensor | None], Tensor]
) -> list[Tensor]:
    """Send parts of a batch through the line without gradients.

    Args:
        line: this process's place.
        shapes: of the tokens of each part.
        stage: what this process makes of part number i and of its tokens, which the first stage gets none of.

    Returns:
        What came out, part by part, in the last stage; nothing in others.
    """
    results = []
    for i, shape in enumerate(shapes):
        x = None if line.previous is None else line.previous.receive(paddle.empty(list(shape)), EARLIER)
        y = stage(i, x)
        if line.following is None:
            results.append(y)
        else:
            line.following.send(y.astype("float32"), LATER)
    return results


class Schedule:
    """One forward, one backward: each process alternates as soon as the parts before have filled the line.

    Neighbors exchange tokens against gradients in one go, the earlier one sending first, so that also messages that
    wait for their receiver, as gloo's, cannot block each other.

    Args:
        line: this process's place.
        shapes: of the tokens of each part of the batch.
        stage: gives the tokens that part number i leaves with, or in the last stage what is to be minimized.
    """

    def __init__(
        self, line: Line, shapes: Sequence[Sequence[int]], stage: Callable[[int, Tensor | None], Tensor]
    ) -> None:
        self.line, self.shapes, self.stage = line, [list(shape) for shape in shapes], stage
        self.open: deque[tuple[int, Tensor | None, Tensor]] = deque()  # parts that are forward but not backward

    def run(self) -> None:
        """Run every part forward and backward; gradients add up in the parameters."""
        count = len(self.shapes)
        ahead = min(self.line.stages - 1 - self.line.stage, count)
        for i in range(ahead):
            y = self._forward(i, self._receive_tokens(i))
            self._send(self.line.following, y, LATER)
        x = self._receive_tokens(ahead) if ahead < count else None
        for i in range(ahead, count):
            grad = self._hand_on(self._forward(i, x))
            x = self._hand_back(self._backward(grad), i + 1 if i + 1 < count else None)
        for _ in range(ahead):
            grad = self._receive(self.line.following, self.open[0][0], LATER)
            self._send(self.line.previous, self._backward(grad), EARLIER)

    def _forward(self, i: int, x: Tensor | None) -> Tensor:
        if x is not None:
            x.stop_gradient = False
        y = self.stage(i, x)
        self.open.append((i, x, y))
        return y

    def _backward(self, grad: Tensor | None) -> Tensor | None:
        """Backward for the oldest open part; returns the gradient of its tokens."""
        _, x, y = self.open.popleft()
        paddle.autograd.backward([y], [grad if grad is None else grad.astype(y.dtype)])
        return None if x is None else x.grad

    def _hand_on(self, y: Tensor) -> Tensor | None:
        """Give tokens to the next stage for the gradient of the oldest open part."""
        self._send(self.line.following, y, LATER)
        return self._receive(self.line.following, self.open[0][0], LATER)

    def _hand_back(self, grad: Tensor | None, i: int | None) -> Tensor | None:
        """Give a gradient to the stage before for the tokens of part i, if there is one more."""
        x = None if i is None else self._receive_tokens(i)
        self._send(self.line.previous, grad, EARLIER)
        return x

    def _receive_tokens(self, i: int) -> Tensor | None:
        return self._receive(self.line.previous, i, EARLIER)

    def _receive(self, pair: Group | None, i: int, member: int) -> Tensor | None:
        return None if pair is None else pair.receive(paddle.empty(self.shapes[i]), member)

    def _send(self, pair: Group | None, values: Tensor | None, member: int) -> None:
        if pair is not None and values is not None:
            pair.send(values.detach().astype("float32"), member)
