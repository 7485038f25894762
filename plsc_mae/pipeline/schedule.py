"""Pipeline schedule: each stage runs its blocks on the micro-batches of a batch and sends the results to the next.

The schedule is "one forward, one backward" (PipeDream-flush, Narayanan et al. 2019): a stage keeps the activations of
as few micro-batches as possible, one for itself and one for each later stage. Paddle's own pipeline (PipelineLayer of
fleet) does not run on CPU and requires networks written for it. Here a stage is the whole network without the blocks of
the other stages, its parameters keep their names, and messages use send and recv of paddle.distributed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World

LATER, EARLIER = 0, 1  # members of the group of two adjacent stages
StageFunction = Callable[[int, Tensor | None], Tensor]  # (micro-batch, its tokens; None in the first stage) -> output


class Line(NamedTuple):
    """Position of this process in the pipeline."""

    stage: int  # index of this stage; stage 0 reads the images
    stages: int  # number of stages
    previous: Group | None  # group of this and the previous stage; None in the first stage
    following: Group | None  # group of this and the next stage; None in the last stage

    @classmethod
    def of(cls, world: World) -> Line:
        """Return the position of this process in the pipeline of a run."""
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
    """Run the forward passes of all micro-batches, without backward passes; all stages must call.

    Args:
        line: position of this process in the pipeline.
        shapes: shape [b, N, D] of the tokens of each micro-batch.
        stage: forward pass of this stage.

    Returns:
        The outputs of all micro-batches in the last stage; an empty list in the others.
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
    """Pipeline schedule "one forward, one backward", named after the order of a stage's passes in a filled pipeline.

    When two adjacent stages exchange tokens for gradients, the earlier stage sends first. So there is no deadlock,
    although sending with gloo blocks until the message is received.

    Args:
        line: position of this process in the pipeline.
        shapes: shape [b, N, D] of the tokens of each micro-batch.
        stage: forward pass of this stage; the last stage returns the scalar to minimize.
    """

    def __init__(self, line: Line, shapes: Sequence[Sequence[int]], stage: StageFunction) -> None:
        self.line, self.shapes, self.stage = line, [list(shape) for shape in shapes], stage
        self.open: deque[tuple[int, Tensor | None, Tensor]] = deque()  # micro-batches between forward and backward pass

    def run(self) -> None:
        """Run forward and backward passes of all micro-batches and accumulate the gradients; all stages must call."""
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
        """Run the backward pass of the oldest open micro-batch and return the gradient of its input tokens.

        `grad` is the gradient of the stage's output, None in the last stage. The first stage returns None.
        """
        _, x, y = self.open.popleft()
        paddle.autograd.backward([y], [grad if grad is None else grad.astype(y.dtype)])
        return None if x is None else x.grad

    def _swap_with_following(self, y: Tensor) -> Tensor | None:
        """Send tokens to the next stage and receive the oldest open micro-batch's gradient; None in the last stage."""
        self._send(self.line.following, y, LATER)
        return self._receive(self.line.following, self.open[0][0], LATER)

    def _swap_with_previous(self, grad: Tensor | None, i: int | None) -> Tensor | None:
        """Receive the tokens of micro-batch `i`, then send `grad` to the previous stage; return the tokens.

        If `i` is None, nothing is received. In the first stage, nothing is exchanged. In both cases None is returned.
        """
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
