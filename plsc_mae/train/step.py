"""One update: forward and backward passes of an accumulation group, gradient norm, clipping and optimizer step."""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, _C_ops, nn

from plsc_mae.methods.base import Batch, PassContext, StepOutput, Task
from plsc_mae.models.execution import memory, on_cpu
from plsc_mae.optim import ParamGroup, Rates, set_weight_decay
from plsc_mae.parallel import activity
from plsc_mae.parallel.tensor import shard_of
from plsc_mae.parallel.world import World
from plsc_mae.train.precision import FLOAT32, LossScale, Precision, autocast

PIECE_ELEMENTS = 1 << 26  # largest temporary copy of several gradients, 256 MB in float32


class AccumulationGroup(NamedTuple):
    """Consecutive iterations whose gradients are summed for one update."""

    number: int  # zero-based index of the update in its epoch
    start: int  # zero-based index of the group's first iteration in the epoch
    size: int  # number of iterations in the group

    @property
    def last(self) -> int:
        """Zero-based index of the group's last iteration in the epoch."""
        return self.start + self.size - 1


class Accumulation(NamedTuple):
    """Division of an epoch's iterations into accumulation groups; the last group may be shorter."""

    iterations: int  # iterations per epoch
    accum_iter: int  # iterations per update

    @property
    def updates(self) -> int:
        """Updates per epoch."""
        return -(-self.iterations // self.accum_iter)

    def is_start(self, iteration: int) -> bool:
        """Return whether a group starts at the zero-based `iteration` of the epoch."""
        return iteration % self.accum_iter == 0

    def group(self, iteration: int) -> AccumulationGroup:
        """Return the group that contains the zero-based `iteration` of the epoch."""
        number = iteration // self.accum_iter
        start = number * self.accum_iter
        return AccumulationGroup(number, start, min(self.accum_iter, self.iterations - start))


class Verdict(enum.Enum):
    """Decision on whether to apply an update.

    Attributes:
        APPLY: update the parameters.
        DISCARD: discard the gradients.
        OVERFLOW: discard the gradients and lower the loss scale.
    """

    APPLY = enum.auto()
    DISCARD = enum.auto()
    OVERFLOW = enum.auto()


class UpdateResult(NamedTuple):
    """Outcome of an update."""

    applied: bool  # whether the parameters were updated
    norm: Tensor  # global gradient norm without the loss scale, before clipping; a scalar on the device


class Stepper:
    """Executor of a Task's updates: gradient accumulation, mixed precision, clipping and the optimizer step.

    For an update, call `forward_backward` once per iteration of its accumulation group, then `apply_update`.
    `train.setup.build_stepper` builds a Stepper from the options of a run.

    Args:
        task: the task to train.
        optimizer: updates the parameters in `groups`.
        groups: parameter groups of the optimizer; with ZeRO stage 1 only the parameters that this process updates.
        params: all trainable parameters of this process by name; None for those of `task.model`.
        layer: the compiled task, or the task wrapped for data parallelism or ZeRO; None for the task itself.
        clip_grad: largest global gradient norm; None disables clipping.
        precision: precision of the forward passes.
        world: processes of the run; None for a single process.
        publish: broadcasts the parameters that each process has updated (ZeRO stage 1); None otherwise.
        sharded: whether the data-parallel processes shard the gradients (ZeRO stages 2 and 3).
        gather_weights: gathers the whole weights in every process (ZeRO stage 3); None otherwise.
    """

    def __init__(
        self,
        task: Task,
        optimizer: paddle.optimizer.Optimizer,
        groups: Sequence[ParamGroup],
        *,
        params: Mapping[str, Tensor] | None = None,
        layer: nn.Layer | None = None,
        clip_grad: float | None = None,
        precision: Precision = FLOAT32,
        world: World | None = None,
        publish: Callable[[], None] | None = None,
        sharded: bool = False,
        gather_weights: Callable[[], Any] | None = None,
    ) -> None:
        self.task = task
        self.layer = task if layer is None else layer
        self.optimizer, self.groups = optimizer, groups
        self.params = trainable_parameters(task.model) if params is None else params
        self.clip_grad, self.precision, self.world = clip_grad, precision, world
        self.publish, self.sharded, self.gather_weights = publish, sharded, gather_weights
        self.scaler = LossScale(precision.initial_loss_scale)
        self.weight_decay = 0.0

    def set_rates(self, rates: Rates) -> None:
        """Set the learning rate and weight decay of the next updates."""
        self.optimizer.set_lr(rates.lr)
        set_weight_decay(self.optimizer, self.groups, rates.weight_decay)
        self.weight_decay = rates.weight_decay

    def forward_backward(self, batch: Batch, *, group_size: int = 1, last: bool = True) -> StepOutput:
        """Run the forward and backward pass of one iteration; the gradients are added to those of the group.

        Args:
            batch: result of `Task.prepare`.
            group_size: number of iterations in this accumulation group.
            last: whether this is the last iteration of the group. The gradients are then averaged over the
                data-parallel processes, all of which must call. With ZeRO stages 2 and 3, Paddle exchanges the
                gradients in every iteration.

        Returns:
            The output of `Task.forward_backward`; its loss is neither divided by `group_size` nor scaled.
        """
        context = PassContext(self.layer, functools.partial(autocast, self.precision), group_size, self.scaler.value)
        with self._without_exchange() if not last else contextlib.nullcontext():
            out = self.task.forward_backward(batch, context)
        if last and self.world is not None and not self._averages_in_backward:
            self.world.average_gradients(self.params.values())
        return out

    def apply_update(
        self,
        decide: Callable[[Tensor], Verdict] | None = None,
        on_applied: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> UpdateResult:
        """Apply the update of an accumulation group, or discard it as `decide` says; all processes must call.

        In both cases the gradients are cleared afterwards.

        Args:
            decide: returns the decision for a gradient norm and may read the gradients; by default an update is
                applied unless float16 gradients overflowed.
            on_applied: called after the optimizer step with the parameters by name, which still have the gradients
                that updated them; not called for a discarded update.
        """
        norm = self._gradient_norm()
        verdict = (decide or self._decide_on_overflow)(norm)
        activity.enter("optimizer")
        if verdict is Verdict.APPLY:
            self._step_optimizer(norm)
            if on_applied is not None:
                on_applied(self.params)
        elif verdict is Verdict.OVERFLOW:
            self.scaler.update(good=False)
        for param in self.params.values():
            param.clear_gradient(False)
        if verdict is Verdict.APPLY:
            self.task.after_step()
        return UpdateResult(verdict is Verdict.APPLY, norm)

    def _decide_on_overflow(self, norm: Tensor) -> Verdict:
        overflowed = self.scaler.enabled and not bool(paddle.isfinite(norm))
        return Verdict.OVERFLOW if overflowed else Verdict.APPLY

    def _gradient_norm(self) -> Tensor:
        """Return the global gradient norm, divided by the loss scale; all processes must call."""
        norm = global_norm(self.params.values(), self.world, sharded=self.sharded)
        return norm / self.scaler.value if self.scaler.enabled else norm

    def _step_optimizer(self, norm: Tensor) -> None:
        """Unscale and, with `clip_grad`, clip the gradients, and update the parameters; all processes must call."""
        if self.clip_grad is not None:
            divide_gradients(self.params.values(), clip_divisor(norm, self.clip_grad) * self.scaler.value)
        elif self.scaler.enabled:
            divide_gradients(self.params.values(), paddle.full([], self.scaler.value))
        self.optimizer.step()
        self.scaler.update(good=True)
        if self.publish is not None:
            self.publish()

    @property
    def _averages_in_backward(self) -> bool:
        return self.sharded or isinstance(self.layer, paddle.DataParallel)

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which DataParallel does not exchange gradients; ZeRO stages 2 and 3 still do."""
        return self.layer.no_sync() if isinstance(self.layer, paddle.DataParallel) else contextlib.nullcontext()


def trainable_parameters(model: nn.Layer) -> dict[str, Tensor]:
    """Return the parameters of `model` that are not frozen, by name."""
    return {name: param for name, param in model.named_parameters() if not param.stop_gradient}


def global_norm(params: Iterable[Tensor], world: World | None = None, *, sharded: bool = False) -> Tensor:
    """Return the L2 norm of all gradients together, a scalar on the device; all processes of `world` must call.

    Args:
        params: parameters of this process; those without a gradient are left out.
        world: processes of the run; None for a single process.
        sharded: whether the data-parallel processes shard the gradients.
    """
    whole: list[Tensor] = []
    shared: list[Tensor] = []
    for param in params:
        if param.grad is not None:
            (whole if shard_of(param) is None else shared).append(param.grad)
    square = squared_norm(whole)
    if world is not None:
        if world.tensor.size > 1:
            square = square + world.tensor.sum(squared_norm(shared))
        world.pipeline.sum(square)
        if sharded:
            world.data.sum(square)
    return paddle.sqrt(square)


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements, a float32 scalar on the device; 0 without tensors.

    On a GPU, the tensors are concatenated into pieces of limited size, so that few kernels are launched. On a CPU, they
    are reduced one by one, without a copy.
    """
    if tensors and tensors[0].place.is_gpu_place():
        return squared_norm_of_pieces(tensors)
    return _sum_of_squares(tensors) if tensors else paddle.zeros([])


def squared_norm_of_pieces(tensors: Sequence[Tensor], limit: int = PIECE_ELEMENTS) -> Tensor:
    """Return the sum of the squares of all elements, a float32 scalar, from concatenated pieces.

    A piece has tensors of one dtype and at most `limit` elements; a larger tensor is a piece of its own. There must be
    at least one tensor.
    """
    pieces: list[list[Tensor]] = []
    filled = 0
    for x in sorted(tensors, key=lambda x: str(x.dtype)):
        if not pieces or pieces[-1][0].dtype != x.dtype or filled + x.size > limit:
            pieces.append([])
            filled = 0
        pieces[-1].append(x.flatten())
        filled += x.size
    return _sum_of_squares([paddle.concat(piece) if len(piece) > 1 else piece[0] for piece in pieces])


def _sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    squares = [_C_ops.squared_l2_norm(x if x.dtype == paddle.float32 else x.astype("float32")) for x in tensors]
    return paddle.add_n(squares).reshape([])


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """Return the scalar by which to divide gradients of global norm `norm`, so that the norm is at most `max_norm`.

    Its inverse is min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_.
    """
    return paddle.clip((norm + 1e-6) / max_norm, min=1.0)


def divide_gradients(params: Iterable[Tensor], divisor: Tensor) -> None:
    """Divide the gradients of `params` in place by the float32 scalar `divisor`; the gradients must be finite.

    They are multiplied by its inverse. On GPU, Paddle's kernel for loss scaling does this in one call per dtype. On CPU
    that kernel is slow: for 85 million gradients it takes 0.11 s of a core, NumPy 0.04 s, with the same bits.
    """
    by_dtype: dict[paddle.dtype, list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            by_dtype.setdefault(param.grad.dtype, []).append(param.grad)
    for dtype, gradients in by_dtype.items():
        if dtype == paddle.float32 and all(on_cpu(x) and x.is_contiguous() for x in gradients):
            inverse = np.float32(1) / memory(divisor)
            for gradient in gradients:
                values = memory(gradient)
                values *= inverse
        else:
            _C_ops.check_finite_and_unscale_(gradients, divisor.reshape([1]))
