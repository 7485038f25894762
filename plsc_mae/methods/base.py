"""The seam between the engine and the methods: what the Trainer may rely on, and nothing else.

A method differs from another in its Task (network, target, loss), its transforms, its defaults (plsc_mae/config) and
its parameter groups. To add one: write `methods/NAME.py` with a `METHOD`, its config class with `method = "NAME"`,
list that class in `plsc_mae/config/__init__.py`, add a YAML and a test. If the engine needs an `if`, the seam is wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from paddle import Tensor, nn

from plsc_mae.analysis.reconstruct import PatchStats
from plsc_mae.config import PretrainConfig, TrainingConfig
from plsc_mae.config.training import UpdateScheduleOptions
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import DrawBox, Transform, clamped_crop_box
from plsc_mae.methods.memory_outline import MemoryOutline
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.optim import ParamGroup, Schedule, by_epochs, by_updates, weight_decay_groups
from plsc_mae.weights.dialects.base import Dialect, Tensors
from plsc_mae.weights.reader import Checkpoint

DEFAULT_SIZE = 224  # of images, where neither a table of positions nor stored options tell it
Batch = dict[str, Tensor]
Pictures = dict[str, npt.NDArray[np.uint8]]


class StepOutput(NamedTuple):
    """What one forward pass gives to the engine."""

    loss: Tensor  # scalar, float32
    logs: dict[str, Tensor]  # scalars to average and log; still on the device
    features: Tensor | None = None  # float32 [B, D], without gradient, see `Task.gives_features`


class Task(nn.Layer, ABC):
    """One training objective: `forward(batch)` gives the loss and what to log.

    The engine wraps the Task in DataParallel, so every trainable parameter must be a sub-layer of it.

    Attributes:
        model: what is saved and exported.
        gives_features: asks `forward` for one vector per image, of what the encoder has made of its visible part.
        score_names: names of `scores`.
    """

    model: nn.Layer
    gives_features: bool = False
    score_names: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch that `prepare` has seen."""

    def prepare(self, batch: Batch) -> Batch:
        """Add what no gradient goes through, as a frozen network's targets; the engine calls it before `forward`."""
        return batch

    def schedule(self, config: TrainingConfig, lr: float, updates_per_epoch: int) -> Schedule:
        """Make the schedule of a run whose peak learning rate is `lr`.

        By updates where the options have a warm-up in updates, else by epochs.

        Raises:
            ConfigError: the warm-up leaves nothing of the run.
        """
        common: dict[str, float] = {"lr": lr, "min_lr": config.min_lr, "weight_decay": config.weight_decay}
        if not isinstance(config, UpdateScheduleOptions):
            return by_epochs(epochs=config.epochs, warmup_epochs=config.warmup_epochs, **common)
        warmup = config.warmup_steps if config.warmup_steps > 0 else int(config.warmup_epochs * updates_per_epoch)
        updates = config.epochs * updates_per_epoch
        return by_updates(updates=updates, warmup_updates=warmup, weight_decay_end=config.weight_decay_end, **common)

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Group the trainable parameters for the optimizer, under the names they have in `model`."""
        return weight_decay_groups(self.model.named_parameters(), weight_decay)

    def after_step(self) -> None:
        """Follow an optimizer step, as a moving average of the weights does."""

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint has besides the model, under names of its own.

        Plain values, and dictionaries of tensors by the names of the model's, with the same parts of shared ones.
        """
        return {}

    def load_extra_state(self, stored: Checkpoint) -> None:
        """Put back what `extra_state` gave.

        Raises:
            CheckpointError: the checkpoint lacks it.
        """

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Score every image of a validation batch: {name: float [B]} for `score_names`, of which means are taken."""
        raise TypeError(f"{type(self).__name__} has nothing to validate")

    def pictures(self, batch: Batch, patch_stats: PatchStats | None = None) -> Pictures:
        """Draw what the network makes of a batch: {label: uint8 [B, H, W, 3]}, in the order to show them.

        Args:
            batch: what the view transform gives, as a batch.
            patch_stats: for networks that predict normalized pixels, where mean and std of patches come from.

        Raises:
            ConfigError: `patch_stats` is given and the network predicts something else.
        """
        return {}

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Outline a training pass over `batch_size` images for `plsc-mae plan`; parameters may be declared only."""
        raise TypeError(f"{type(self).__name__} cannot be planned: it does not implement memory_outline")


class StagedTask(Task):
    """A Task of which this process has one stage: it runs forward and backward by a schedule with the others'."""

    def forward(self, batch: Batch) -> StepOutput:
        """Not what a stage does; see `run`."""
        raise TypeError("a stage of a pipeline runs by its schedule")

    @abstractmethod
    def run(
        self, batch: Batch, factor: float | Tensor, precision: Callable[[], AbstractContextManager[Any]]
    ) -> StepOutput:
        """Run a prepared batch forward and backward.

        Args:
            batch: what `prepare` gives.
            factor: times which the loss is minimized.
            precision: the context of forward passes.

        Returns:
            The mean loss of the batch, and logs in the last stage.
        """


def visible_mean(encoded: Tensor) -> Tensor:
    """Features of a step: the mean of the encoded patches, [B, K, D] -> float32 [B, D]."""
    return encoded.detach().astype("float32").mean(axis=1)


class Method(ABC):
    """What a pre-training method is made of.

    Attributes:
        foreign: dialects of other code bases' files of this method, and what reads network arguments off their
            tensors, given the dialect, and the file's name for messages.
    """

    foreign: Mapping[str, Callable[[Tensors, Dialect, str], dict[str, Any]]] = MappingProxyType({})

    @abstractmethod
    def build_task(self, config: Any) -> Task:
        """Make the Task with fresh weights."""

    def sketch_task(self, config: Any) -> Task:
        """Make the Task for counting, without a file; called under `paddle.LazyGuard`, so that it has no weights."""
        return self.build_task(config)

    @abstractmethod
    def build_encoder(self, config: Any) -> VisionTransformer:
        """Make the encoder alone, with fresh weights."""

    def normalize(self, config: Any) -> Normalize:
        """Make what turns uint8 images into the network's floats; ImageNet's statistics unless a method differs."""
        return Normalize()

    @abstractmethod
    def train_transform(self, config: Any) -> Transform:
        """Make the transform that turns an image into a training sample."""

    @abstractmethod
    def view_transform(self, config: Any) -> Transform:
        """Make the transform for looking at an image: no random crop, no flip; masks still come from the generator."""

    @abstractmethod
    def config_of(self, arguments: dict[str, Any]) -> PretrainConfig:
        """Make a config from network arguments read off a foreign file."""

    def forward_macs(self, config: Any, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward pass in training, without a tokenizer's."""
        raise TypeError(f"{type(self).__name__} does not count its operations")

    def training_macs(self, config: Any, task: Task) -> int:
        """Multiply-accumulates that one image costs in training: forward and, at twice the price, backward."""
        raise TypeError(f"{type(self).__name__} does not count its operations")


class ClassifierRecipe(NamedTuple):
    """How a code base makes a classifier of a pre-trained encoder.

    Attributes:
        arguments: arguments of `ImageClassifier` by its options, beside the sizes.
        norm_into_fc_norm: whether the norm behind mean pooling starts from the encoder's final norm.
        head_std: of the head's weights when fine-tuning starts from a checkpoint; None leaves the network's own.
        probe_crop: how probing draws its crops.
    """

    arguments: Callable[[Any], dict[str, Any]]
    norm_into_fc_norm: bool = False
    head_std: float | None = None
    probe_crop: DrawBox = clamped_crop_box
