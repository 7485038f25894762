"""Cases of a comparison: one of this suite's networks with its weights and a batch.

B batch, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.config import PretrainConfig
from plsc_mae.config.training import UpdateScheduleOptions
from plsc_mae.methods.base import Task
from plsc_mae.parity.capture import recorded_blocks
from plsc_mae.parity.oracle.layers import Array
from plsc_mae.parity.oracle.training import rate_by_epochs, rate_by_updates
from plsc_mae.train.precision import FLOAT32, Precision, autocast
from plsc_mae.weights import Checkpoint

NumPy = npt.NDArray[Any]
NORM_EPS = 1e-6  # eps of layer norms in every implementation except LiBai
Objective = Callable[[dict[str, Array]], float]
ConfigT = TypeVar("ConfigT", bound=PretrainConfig)


class Case(ABC, Generic[ConfigT]):
    """Network, its options, and one batch.

    Args:
        config: options of pre-training.
        task: training task; its network is set to evaluation mode.
        batch_size: number of images B.
        seed: seed of the batch.
        precision: precision of our network.

    Attributes:
        model: the network.
        batch: float32 images [B, C, H, W] and the inputs that determine mask and target, by name, in the order in which
            the oracle takes them.
        undecayed: names of parameters without weight decay in the original, besides one-dimensional parameters and
            biases, by method.
    """

    undecayed: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, config: ConfigT, task: Task, batch_size: int, seed: int, precision: Precision = FLOAT32) -> None:
        self.config, self.task, self.precision = config, task, precision
        self.model: Any = task.model
        self.model.eval()
        self.batch = self._draw_batch(batch_size, np.random.default_rng(seed))

    @classmethod
    def without_files(cls, trained: ConfigT) -> ConfigT:
        """Return options of the same network and loss that need no file besides the weights."""
        return trained

    @classmethod
    def of_weights(cls, trained: ConfigT, _stored: Checkpoint) -> ConfigT:
        """Complete the options that `loading.training_config` infers, by the weights of a checkpoint."""
        return trained

    @classmethod
    @abstractmethod
    def small(cls, trained: ConfigT) -> dict[str, Any]:
        """Return options of a small decoder and few hidden patches, for an encoder of width 32 on 4 x 4 patches."""

    @abstractmethod
    def outputs(self) -> dict[str, Tensor]:
        """Run the network and return all outputs, under the oracle's names."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Compute the loss as training does."""

    @abstractmethod
    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Compute the oracle's outputs for the same batch."""

    @abstractmethod
    def objective(self) -> Objective:
        """Return the oracle's loss as a function of the parameters.

        Values through which the network back-propagates no gradient are computed once and stay constant.
        """

    def rate(self, update: int, *, updates: int, warmup: int, peak: float) -> float:
        """Return the learning rate of an update, from 0, by the method's schedule in the oracle.

        Args:
            update: its number.
            updates: length of the run; an epoch has one update.
            warmup: updates of the warm-up.
            peak: highest rate.
        """
        rate = rate_by_updates if isinstance(self.config, UpdateScheduleOptions) else rate_by_epochs
        return rate(update, updates=updates, warmup=warmup, peak=peak, floor=self.config.min_lr)

    @abstractmethod
    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]: ...

    @property
    def name(self) -> str:
        """Registered name of the network."""
        return str(self.config.model)

    def parameters(self) -> dict[str, Array]:
        """Return the network's parameters and position tables in float64, by name."""
        return {name: value.numpy().astype(np.float64) for name, value in self.model.state_dict().items()}

    def layers(self) -> dict[str, NumPy]:
        """Return every layer's output, under the oracle's names."""
        with paddle.no_grad(), autocast(self.precision), recorded_blocks(self.model) as blocks:
            outputs = self.outputs()
        return {name: value.astype("float32").numpy() for name, value in {**blocks, **outputs}.items()}

    def backward(self) -> float:
        """Replace the gradients of the parameters by those of the loss; return the loss."""
        self.model.clear_gradients()
        with autocast(self.precision):
            loss = self.loss()
        loss.backward()
        return float(loss)

    def gradients(self) -> dict[str, NumPy]:
        """Return the gradients of the trainable parameters; zeros for a parameter that the loss does not reach."""
        found = {}
        for name, param in self.model.named_parameters():
            if not param.stop_gradient:
                found[name] = np.zeros(param.shape) if param.grad is None else param.grad.numpy()
        return found

    def tensors(self) -> list[Tensor]:
        """Return the batch as tensors on the device."""
        return [paddle.to_tensor(value) for value in self.batch.values()]

    def arrays(self) -> list[NumPy]:
        """Return the batch for the oracle, floats in float64."""
        values = self.batch.values()
        return [value.astype(np.float64) if value.dtype == np.float32 else value for value in values]

    def _draw_images(self, batch_size: int, rng: np.random.Generator) -> NumPy:
        encoder = self.model.encoder
        channels = encoder.patch_embed.proj.weight.shape[1]
        return rng.standard_normal((batch_size, channels, *encoder.img_size), np.float32)


AnyCase: TypeAlias = Case[PretrainConfig]
