"""Pipeline schedule: processes in a line, each with some of a network's blocks, pass on parts of a batch.

The schedule is one forward, one backward (Narayanan et al. 2019, PipeDream-flush): a stage keeps the activations of one
part for itself and one for each later stage. Paddle's own pipeline (fleet's PipelineLayer) does not run on
CPU and requires networks written for it. Here a stage is the whole network without the blocks of the other stages,
under the same names, and messages are plain ones of paddle.distributed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World

LATER, EARLIER = 0, 1  # members of a pair of neighbors
StageFunction = Callable[[int, Tensor | None], Tensor]  # (part, its tokens; None in the first stage) -> output


class Line(NamedTuple):
    """Position of this process in the line of stages.

    Attributes:
        stage: number of this stage; stage 0 reads the images.
        stages: number of stages.
        previous: pair with the previous stage.
        following: pair with the next stage.
    """

    stage: int
    stages: int
    previous: Group | None
    following: Group | None

    @classmethod
    def of(cls, world: World) -> Line:
        """Return the position of this process in a run."""
        return cls(world.stage, world.pipeline.size, world.previous, world.following)

    @property
    def is_first(self) -> bool:
        """True for the stage that reads the images."""
        return self.previous is None

    @property
    def is_last(self) -> bool:
        """True for the stage that computes the loss."""
        return self.following is None


def pass_forward(line: Line, shapes: Sequence[Sequence[int]], stage: StageFunction) -> list[Tensor]:
    """Send the parts of a batch through the line without gradients.

    Args:
        line: position of this process.
        shapes: shape of the tokens of each part.
        stage: forward pass of this stage.

    Returns:
        The outputs of all parts in the last stage; an empty list in the others.
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
    """One forward, one backward: each stage alternates once the earlier parts have filled the line.

    Neighbors exchange tokens for gradients in pairs, and the earlier stage sends first. So messages that block until
    they are received, as gloo's do, cannot deadlock.

    Args:
        line: position of this process.
        shapes: shape of the tokens of each part of the batch.
        stage: forward pass of this stage; the last stage returns the scalar to minimize.
    """

    def __init__(self, line: Line, shapes: Sequence[Sequence[int]], stage: StageFunction) -> None:
        self.line, self.shapes, self.stage = line, [list(shape) for shape in shapes], stage
        self.open: deque[tuple[int, Tensor | None, Tensor]] = deque()  # parts between their forward and backward pass

    def run(self) -> None:
        """Run every part forward and backward; gradients accumulate in the parameters."""
        count = len(self.shapes)
        ahead = min(self.line.stages - 1 - self.line.stage, count)
        for i in range(ahead):
            y = self._forward(i, self._receive_tokens(i))
            self._send(self.line.following, y, LATER)
        x = self._receive_tokens(ahead) if ahead < count else None
        for i in range(ahead, count):
            grad = self._swap_with_following(self._forward(i, x))
            x = self._swap_with_previous(self._backward(grad), i + 1 if i + 1 < count else None)
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
        """Run the oldest open part backward and return the gradient of its tokens."""
        _, x, y = self.open.popleft()
        paddle.autograd.backward([y], [grad if grad is None else grad.astype(y.dtype)])
        return None if x is None else x.grad

    def _swap_with_following(self, y: Tensor) -> Tensor | None:
        """Send tokens to the next stage and receive the gradient of the oldest open part."""
        self._send(self.line.following, y, LATER)
        return self._receive(self.line.following, self.open[0][0], LATER)

    def _swap_with_previous(self, grad: Tensor | None, i: int | None) -> Tensor | None:
        """Receive the tokens of part i, if there is one, and send a gradient to the previous stage."""
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
