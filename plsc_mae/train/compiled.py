"""Forward passes as programs that Paddle traces once (`--compile`)."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError
from plsc_mae.methods.base import Batch, StepOutput, Task
from plsc_mae.train.precision import Precision


class CompiledTask(nn.Layer):
    """A task whose `forward` runs as a static program, with the same parameters.

    Paddle traces `forward` at the first batch, and again for batches of other shapes or dtypes. Python then starts one
    operation for the forward and one for the backward pass. The whole function becomes one program, because Paddle's
    other mode, which compiles only the parts that it understands, fails on named tuples (Paddle 2.6.2 and 3.3.1).

    Args:
        task: the task. Values other than tensors, such as options, are fixed when `forward` is traced; later changes
            have no effect.
        precision: precision of the forward passes.

    Raises:
        ConfigError: `precision` is mixed and this is Paddle 2, which inserts its casts into the traced program, so that
            the networks cannot keep the residual stream and the losses in float32.
    """

    def __init__(self, task: Task, precision: Precision) -> None:
        if precision.dtype is not None and paddle.__version__.startswith("2."):
            raise ConfigError(
                f"--compile with mixed precision needs Paddle 3, but this is {paddle.__version__}; update Paddle, give "
                "--no_amp, or omit --compile"
            )
        super().__init__()
        self.task = task
        self._traced = paddle.jit.to_static(task.forward, full_graph=True)

    def forward(self, batch: Batch) -> StepOutput:
        """Return the result of `Task.forward` for the tensors of the batch; other entries are left out."""
        loss, logs, features = self._traced({name: x for name, x in batch.items() if isinstance(x, Tensor)})
        return StepOutput(loss, {name: value.detach() for name, value in logs.items()}, features)
