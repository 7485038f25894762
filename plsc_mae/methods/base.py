"""The interface between the training loop and a method: the Task, its batches and its outputs.

Methods differ in their Task (network, target, loss), transforms, defaults (plsc_mae/config) and parameter groups. The
training loop never branches on a method. `contract.py` has the rest of the interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from paddle import Tensor, nn

from plsc_mae.config.training import UpdateScheduleOptions
from plsc_mae.data.display import RGB_DISPLAY, Display, cross_out
from plsc_mae.data.pixels import RGB_CHANNELS
from plsc_mae.methods.memory_outline import MemoryOutline
from plsc_mae.optim import ParamGroup, Schedule, by_epochs, by_updates, weight_decay_groups
from plsc_mae.parallel import activity

if TYPE_CHECKING:
    from plsc_mae.config import TrainingConfig
    from plsc_mae.weights.reader import Checkpoint

MASKED = "masked"  # label of the picture with hidden patches
OUTPUT, LABEL, PREDICTION = "output", "label", "prediction"  # entries of the result of `Task.scores`
Batch = dict[str, Any]  # tensors; entries named host_* are NumPy arrays, because the device does not need them
Pictures = dict[str, npt.NDArray[np.uint8]]
Drawn = dict[str, Tensor]  # pixels [B, C, H, W] by label, the original's from 0 to 1
PatchStats = Literal["original", "visible"]
Autocast = Callable[[], AbstractContextManager[Any]]


class StepOutput(NamedTuple):
    """The result of one forward pass."""

    loss: Tensor  # scalar, float32
    logs: dict[str, Tensor]  # scalars to average and log; still on the device
    features: Tensor | None = None  # float32 [B, D], without gradient; None unless `Task.gives_features`


class PassContext(NamedTuple):
    """Settings of one forward and backward pass.

    Attributes:
        forward: the Task's `forward`, possibly compiled or wrapped for data parallelism.
        autocast: returns the context manager for mixed precision of a forward pass.
        group_size: number of passes of this update; the loss is divided by it before the backward pass, as in the
            originals.
        loss_scale: factor of the loss after this division; 1 unless training is in float16.
    """

    forward: Callable[[Batch], StepOutput]
    autocast: Autocast
    group_size: int
    loss_scale: float

    @property
    def loss_factor(self) -> float:
        """The factor by which the logged loss is multiplied before the backward pass."""
        return self.loss_scale / self.group_size


class Task(nn.Layer, ABC):
    """A training objective, whose `forward(batch)` returns the loss and the values to log.

    Every trainable parameter must be in `model`: the optimizer, the checkpoints and the exchange of gradients between
    processes see no others.

    Attributes:
        model: the network; checkpoints contain its weights.
        gives_features: whether `forward` of a pre-training Task also returns features: for each image, the mean of its
            encoded visible patches.
        score_names: names of those results of `scores` that are averaged.
        constant_scores: those of them that are the same for every network, which the console and the boards leave out.
        display: channels and contrast of pictures.
        reference_loss: name of the logged loss that `trivial_losses` are compared with; "" for a Task without them.
    """

    model: nn.Layer
    gives_features: bool = False
    reference_loss: str = ""
    display: Display = RGB_DISPLAY
    score_names: tuple[str, ...] = ()
    constant_scores: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch that `prepare` returned."""

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch for `forward`; by default `batch` itself.

        Overrides do the computations that need no gradient here, such as those of a frozen network's targets.
        """
        return batch

    def forward_backward(self, batch: Batch, context: PassContext) -> StepOutput:
        """Run forward and backward pass of a prepared batch, and return the output of `forward`.

        The gradients of the loss times `context.loss_factor` are added to those that the parameters already have.
        """
        with context.autocast():
            out = context.forward(batch)
        activity.enter("backward")
        loss = out.loss if context.group_size == 1 else out.loss / context.group_size
        (loss if context.loss_scale == 1.0 else loss * context.loss_scale).backward()
        return out

    def left_out(self, values: Mapping[str, float]) -> Collection[str]:
        """Return the names of the logged values that lines on the console leave out; by default none.

        If there are any, the console has no line for the last update of an epoch besides that of the epoch.
        """
        return ()

    def schedule(self, config: TrainingConfig, lr: float, updates_per_epoch: int) -> Schedule:
        """Return the schedule of a run whose peak learning rate is `lr`.

        The schedule counts updates if `config` is an `UpdateScheduleOptions`, else epochs.

        Raises:
            ConfigError: the schedule counts updates, and its warm-up is not shorter than the run.
        """
        common: dict[str, float] = {"lr": lr, "min_lr": config.min_lr, "weight_decay": config.weight_decay}
        if not isinstance(config, UpdateScheduleOptions):
            return by_epochs(epochs=config.epochs, warmup_epochs=config.warmup_epochs, **common)
        warmup = config.warmup_steps if config.warmup_steps > 0 else int(config.warmup_epochs * updates_per_epoch)
        updates = config.epochs * updates_per_epoch
        return by_updates(updates=updates, warmup_updates=warmup, weight_decay_end=config.weight_decay_end, **common)

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Return the trainable parameters in groups for the optimizer, under their names in `model`."""
        return weight_decay_groups(self.model.named_parameters(), weight_decay)

    def complete_initial_weights(self, missing: Collection[str]) -> None:
        """Set missing tensors of `model` that follow from others, after a file of initial weights was loaded.

        Args:
            missing: names of the tensors of `model` that the file lacks.
        """

    def after_step(self) -> None:
        """Do the work that follows every optimizer step, such as the update of a moving average of the weights."""

    def extra_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores besides the model, {name: value}.

        A value is plain data, or a dictionary of tensors keyed by the names of the model's state dict. Under tensor
        parallelism these tensors are sharded like those of the model.
        """
        return {}

    def load_extra_state(self, stored: Checkpoint) -> None:
        """Restore the state that `extra_state` returned.

        Raises:
            CheckpointError: the checkpoint lacks this state, or it is damaged or does not fit this run.
        """

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scores of a validation batch, {name: float [B]} for `score_names`.

        `OUTPUT` and `LABEL` may be further entries, see `metrics`; for classes also `PREDICTION`, the most probable
        class of each image, float [B].

        Raises:
            TypeError: the Task has no scores.
        """
        raise TypeError(f"{type(self).__name__} cannot be validated: it does not implement scores")

    @property
    def gathers_outputs(self) -> bool:
        """True if every evaluation computes `metrics`, for which it keeps the outputs of all images."""
        return False

    def metrics(self, outputs: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return the metrics that are computed from the outputs of a whole data set, {name: value}.

        Args:
            outputs: `OUTPUT` [n, K] of all readable images, as `scores` returned them.
            labels: their `LABEL`: class numbers int64 [n], or float32 [n, K].
        """
        return {}

    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of trivial predictors on prepared batches, by the predictors' names in `analysis.trivial`.

        A network whose logged loss `reference_loss` is lower has learned more than these predictors. The result is
        empty for a Task without `reference_loss`.
        """
        return {}

    def draw(self, batch: Batch, patch_stats: PatchStats | None = None) -> Drawn:
        """Return the network's predictions for a batch as pixels in all channels, {label: [B, C, H, W]}.

        The first one is the original, the second one is masked. The result is empty for a Task without pictures.
        Predictions may exceed the range from 0 to 1.

        Args:
            batch: a batch of samples from `Method.view_transform`.
            patch_stats: source of the mean and standard deviation of hidden patches, for networks that predict
                normalized pixels: "original" is the original image, "visible" the visible neighbors. None means
                "original", and is the only choice for other networks.

        Raises:
            ConfigError: `patch_stats` is set, but the pictures of this network have no such choice.
            CheckpointError: a file that only pictures need cannot be used.
        """
        return {}

    def hidden_patches(self, batch: Batch) -> npt.NDArray[np.bool_] | None:
        """Return the mask of `draw`, bool [B, rows, columns], True = hidden; None for a Task without pictures."""
        return None

    @property
    def predicts_pixels(self) -> bool:
        """True if the third result of `draw` is a prediction of pixels, so that it has a PSNR."""
        return True

    def pictures(self, batch: Batch, patch_stats: PatchStats | None = None) -> Pictures:
        """Return `draw` for display, {label: uint8 [B, H, W, 3]}."""
        return self.show(self.draw(batch, patch_stats), batch)

    def show(self, drawn: Drawn, batch: Batch) -> Pictures:
        """Convert results of `draw` for `batch` to pictures, {label: uint8 [B, H, W, 3]}."""
        return to_pictures(drawn, self.display, self.hidden_patches(batch)) if drawn else {}

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Return the memory outline of one training pass.

        Only the shapes of the parameters are read, so the network may be built without weights (`paddle.LazyGuard`).

        Args:
            batch_size: images of the pass.
            gpu: whether the pass runs on a GPU, which changes the temporary memory of a tokenizer.

        Raises:
            TypeError: the Task has no outline.
        """
        raise TypeError(f"{type(self).__name__} cannot be planned: it does not implement memory_outline")


def visible_mean(encoded: Tensor) -> Tensor:
    """Average the features of encoded patches, without gradient: [B, K, D] -> float32 [B, D]."""
    return encoded.detach().astype("float32").mean(axis=1)


def to_pictures(
    drawn: Mapping[str, Tensor], display: Display = RGB_DISPLAY, hidden: npt.NDArray[np.bool_] | None = None
) -> Pictures:
    """Convert {label: pixels [B, C, H, W]} to {label: pictures, uint8 [B, H, W, 3]}.

    Values outside [0, 1] are clipped. Images of three channels keep their colors if `display` is that of 8-bit RGB. All
    other images are drawn as `display` says, and the hidden patches of the picture `MASKED` are crossed out, because
    any color could be data.

    Args:
        drawn: pixels by label, the original first.
        display: channels and contrast of the pictures.
        hidden: [B, rows, columns], True for hidden patches; None without a picture `MASKED`.
    """
    if display != RGB_DISPLAY or next(iter(drawn.values())).shape[1] != RGB_CHANNELS:
        shown = display.draw({label: pixels.numpy().transpose(0, 2, 3, 1) for label, pixels in drawn.items()})
        return shown if hidden is None else {**shown, MASKED: cross_out(shown[MASKED], hidden)}
    return {
        label: (pixels.clip(0, 1) * 255).round().astype("uint8").numpy().transpose(0, 2, 3, 1)
        for label, pixels in drawn.items()
    }
