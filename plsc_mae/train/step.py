"""One training iteration: forward, backward, and at the end of an accumulation group clip and update."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.methods.base import Batch, StagedTask, StepOutput
from plsc_mae.parallel.tensor import shard_of
from plsc_mae.parallel.world import World

BFLOAT16_CAPABILITY = 8  # Ampere


class Precision(NamedTuple):
    """The arithmetic of a run and the sentence that says so."""

    dtype: str | None  # of mixed precision, None = float32
    note: str
    level: str = "O1"


FLOAT32 = Precision(None, "float32")


def choose_precision(amp: bool, amp_dtype: str, is_gpu: bool, level: str = "O1") -> Precision:
    """Decide on mixed precision; on CPU Paddle has no float16 or bfloat16 kernels and the run is float32.

    Args:
        amp: whether mixed precision is wanted at all.
        amp_dtype: "float16", "bfloat16", or "auto" for what the GPU is made for.
        is_gpu: whether there is one.
        level: "O1" casts in front of kernels that gain by it; "O2" keeps the weights in 16 bits, see `lower_weights`.
    """
    if not is_gpu:
        return Precision(
            None, "float32" + (" (Paddle has no mixed precision on CPU, --amp acts on GPU)" if amp else "")
        )
    if not amp:
        return Precision(None, "float32 (--no_amp)")
    capable = paddle.device.cuda.get_device_capability()[0] >= BFLOAT16_CAPABILITY
    dtype = ("bfloat16" if capable else "float16") if amp_dtype == "auto" else amp_dtype
    scale = ", dynamic loss scale" if dtype == "float16" else ""
    return Precision(dtype, f"mixed precision {level}, {dtype}{scale}", level)


def autocast(precision: Precision) -> contextlib.AbstractContextManager[None]:
    """The context in which forward passes have a precision."""
    if precision.dtype is None:
        return contextlib.nullcontext()
    return paddle.amp.auto_cast(level=precision.level, dtype=precision.dtype)


def lower_weights(task: nn.Layer, optimizer: paddle.optimizer.Optimizer, precision: Precision) -> None:
    """Turn the weights to 16 bits where a precision wants that, with float32 copies in the optimizer."""
    if precision.dtype is not None and precision.level == "O2":
        paddle.amp.decorate(task, optimizer, level="O2", dtype=precision.dtype, master_weight=True)


def global_norm(params: Iterable[Tensor], world: World | None = None, *, sharded: bool = False) -> Tensor:
    """L2 norm of all gradients together, a scalar on the device.

    Args:
        params: the parameters of this process.
        world: where the processes that share the network are found; all of them must call.
        sharded: whether those that share the data have shared out the gradients too.
    """
    whole: list[Tensor] = []
    shared: list[Tensor] = []
    for param in params:
        if param.grad is not None:
            (whole if shard_of(param) is None else shared).append((param.grad * param.grad).sum())
    square = paddle.add_n(whole) if whole else paddle.zeros([])
    if world is not None:
        if world.tensor.size > 1:
            square = square + world.tensor.sum(paddle.add_n(shared) if shared else paddle.zeros([]))
        world.pipeline.sum(square)
        if sharded:
            world.data.sum(square)
    return paddle.sqrt(square)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What brings gradients of a norm down to the largest one: min(1, max_norm / (norm + 1e-6)), PyTorch's rule."""
    return paddle.clip(max_norm / (norm + 1e-6), max=1.0)


def scale_gradients(params: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply gradients in place."""
    for param in params:
        if param.grad is not None:
            param.grad.set_value(param.grad * factor)


class Stepper:
    """Runs iterations of a Task under accumulation, clipping and mixed precision.

    An update is `backward` for every iteration of a group, then `gradient_norm`, then `update`, or `drop` where loss or
    norm are not finite.

    Args:
        task: the Task, wrapped for data parallelism where there is one.
        params: the trainable parameters.
        optimizer: updates them.
        clip_grad: largest global gradient norm, or None.
        precision: of the forward pass.
        world: the processes that share the network.
        publish: gives the other processes the parameters that this one has updated, where each updates some.
        sharded: whether the processes that share the data have shared out the gradients.
    """

    def __init__(
        self,
        task: nn.Layer,
        params: list[Tensor],
        optimizer: paddle.optimizer.Optimizer,
        *,
        clip_grad: float | None = None,
        precision: Precision = FLOAT32,
        world: World | None = None,
        publish: Callable[[], None] | None = None,
        sharded: bool = False,
    ) -> None:
        self.sharded = sharded
        self.task, self.params, self.optimizer, self.publish = task, params, optimizer, publish
        self.clip_grad, self.precision, self.world = clip_grad, precision, world
        self.scaler = LossScale(precision.dtype == "float16")

    def __call__(self, batch: Batch, *, group_size: int = 1, update: bool = True) -> tuple[StepOutput, Tensor | None]:
        """Run one iteration; returns the Task's output and, after an update, the gradient's norm before clipping."""
        out = self.backward(batch, group_size=group_size, last=update)
        if not update:
            return out, None
        norm = self.gradient_norm()
        if self.scaler.is_enable() and not bool(paddle.isfinite(norm)):
            self.drop(overflow=True)
        else:
            self.update(norm)
        return out, norm

    def backward(self, batch: Batch, *, group_size: int = 1, last: bool = True) -> StepOutput:
        """Run a micro-batch forward and backward.

        Args:
            batch: what `Task.prepare` has made.
            group_size: iterations in this accumulation group; a short group at the end of an epoch counts its own.
            last: whether this is the group's last, after which the processes exchange gradients.
        """
        with self._gradients_kept_local(not last):
            with autocast(self.precision):
                out: StepOutput = self.task(batch)
            self.scaler.scale(out.loss / group_size if group_size > 1 else out.loss).backward()
        return out

    def gradient_norm(self) -> Tensor:
        """The gradient's norm, free of the loss scale."""
        norm = global_norm(self.params, self.world, sharded=self.sharded)
        return norm / self.scaler.value if self.scaler.is_enable() else norm

    def update(self, norm: Tensor) -> None:
        """Take the loss scale out of the gradients, clip them by their norm and update the parameters."""
        factor = None if self.clip_grad is None else clip_factor(norm, self.clip_grad)
        if self.scaler.is_enable():
            factor = (1.0 if factor is None else factor) / self.scaler.value
        if factor is not None:
            scale_gradients(self.params, factor)
        self.optimizer.step()
        self.scaler.update(good=True)
        if self.publish is not None:
            self.publish()
        self._forget_gradients()

    def drop(self, *, overflow: bool = False) -> None:
        """Forget the gradients instead of updating; after an overflow, which is float16's, the loss scale is halved."""
        if overflow:
            self.scaler.update(good=False)
        self._forget_gradients()

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with before the backward pass."""
        return self.scaler.value

    def _forget_gradients(self) -> None:
        for param in self.params:
            param.clear_gradient(False)

    def _gradients_kept_local(self, local: bool) -> contextlib.AbstractContextManager[None]:
        """No exchange between processes on the inner iterations of a group."""
        if local and isinstance(self.task, paddle.DataParallel):
            return self.task.no_sync()
        return contextlib.nullcontext()


class PipelineStepper(Stepper):
    """Runs iterations of a stage of a pipeline, whose task has a schedule of its own."""

    task: StagedTask

    def backward(self, batch: Batch, *, group_size: int = 1, last: bool = True) -> StepOutput:
        """See `Stepper.backward`."""
        out = self.task.run(batch, self.loss_scale / group_size, functools.partial(autocast, self.precision))
        if last and self.world is not None:
            self.world.average_gradients(self.params)
        return out


INITIAL = 2.0**16
FLOOR = 1.0  # gradients that overflow without being lifted are too large by themselves


class LossScale:
    """Doubles after `incr_every_n_steps` good updates in a row, halves after a bad one, down to FLOOR.

    Args:
        enable: whether losses are scaled at all.
        initial: scale to begin with.
        incr_every_n_steps: good updates before it doubles.

    Attributes:
        value: what losses are multiplied with.
    """

    def __init__(self, enable: bool, *, initial: float = INITIAL, incr_every_n_steps: int = 2000) -> None:
        self.enable = enable
        self.value = initial if enable else 1.0
        self.incr_ratio, self.decr_ratio = 2.0, 0.5
        self.incr_every_n_steps, self.incr_count = incr_every_n_steps, 0

    def is_enable(self) -> bool:
        """Whether losses are scaled."""
        return self.enable

    @property
    def at_floor(self) -> bool:
        """Whether halving is no remedy any more."""
        return self.value <= FLOOR

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply a loss before its backward pass."""
        return loss * self.value if self.enable else loss

    def update(self, *, good: bool) -> None:
        """Follow an update that was made, or not because gradients were not finite."""
        if not self.enable:
            return
        if not good:
            self.value, self.incr_count = max(self.value * self.decr_ratio, FLOOR), 0
            return
        self.incr_count += 1
        if self.incr_count == self.incr_every_n_steps:
            self.value, self.incr_count = self.value * self.incr_ratio, 0

    def state_dict(self) -> dict[str, Any]:
        """The fields of Paddle's GradScaler; nothing where losses are not scaled."""
        if not self.enable:
            return {}
        return {
            "scale": np.asarray([self.value], np.float32),
            "incr_ratio": self.incr_ratio,
            "decr_ratio": self.decr_ratio,
            "incr_every_n_steps": self.incr_every_n_steps,
            "decr_every_n_nan_or_inf": 1,
            "incr_count": self.incr_count,
            "decr_count": 0,
            "use_dynamic_loss_scaling": True,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, here or in Paddle."""
        if not self.enable:
            return
        self.value = float(np.asarray(state["scale"]).reshape(-1)[0])
        self.incr_ratio, self.decr_ratio = float(state["incr_ratio"]), float(state["decr_ratio"])
        self.incr_every_n_steps, self.incr_count = int(state["incr_every_n_steps"]), int(state["incr_count"])
