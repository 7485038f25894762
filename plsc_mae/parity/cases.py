"""Cases of a comparison: one of our networks with its weights and a batch.

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
    """Network to compare, with its options and one batch.

    Args:
        config: options of pre-training.
        task: training task; its network is set to evaluation mode.
        batch_size: number of images B.
        seed: seed of the batch.
        precision: precision in which our network runs.

    Attributes:
        model: the network.
        batch: float32 images [B, C, H, W] and the inputs that determine mask and target, by name, in the order in which
            the oracle takes them.
        remark: deviation of the compared loss from that of training; "" without one.
        undecayed: names of the parameters that the original exempts from weight decay, by method. One-dimensional
            parameters and biases are always exempt and not listed.
    """

    undecayed: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, config: ConfigT, task: Task, batch_size: int, seed: int, precision: Precision = FLOAT32) -> None:
        self.config, self.task, self.precision = config, task, precision
        self.remark = ""
        self.model: Any = task.model
        self.model.eval()
        self.batch = self._draw_batch(batch_size, np.random.default_rng(seed))

    @classmethod
    def without_files(cls, trained: ConfigT) -> ConfigT:
        """Return options for the same network that need no file besides the weights; the loss may change."""
        return trained

    @classmethod
    def replaced_options(cls, _trained: ConfigT) -> str:
        """Return a clause about options of the loss that `without_files` replaces; "" without such options."""
        return ""

    @classmethod
    def of_weights(cls, trained: ConfigT, _stored: Checkpoint) -> ConfigT:
        """Return `trained`, completed by options that only the weights of the checkpoint show."""
        return trained

    @classmethod
    @abstractmethod
    def small(cls, trained: ConfigT) -> dict[str, Any]:
        """Return the options of a small network by name, without those of its encoder (width 32, 4 x 4 patches)."""

    @abstractmethod
    def outputs(self) -> dict[str, Tensor]:
        """Run the network on the batch and return its losses and outputs by name, without the outputs of its blocks."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the loss of the batch, computed as in training apart from `remark`."""

    @abstractmethod
    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Run the oracle on the same batch with `parameters` and return its outputs by name."""

    @abstractmethod
    def objective(self) -> Objective:
        """Return the oracle's loss as a function of the parameters.

        Values through which the network back-propagates no gradient are computed once and stay constant.
        """

    def rate(self, update: int, *, updates: int, warmup: int, peak: float) -> float:
        """Return the learning rate of an update by the oracle's schedule for the method.

        Args:
            update: zero-based index of the update.
            updates: number of updates in the run; an epoch has one update.
            warmup: number of warm-up updates.
            peak: highest learning rate.
        """
        rate = rate_by_updates if isinstance(self.config, UpdateScheduleOptions) else rate_by_epochs
        return rate(update, updates=updates, warmup=warmup, peak=peak, floor=self.config.min_lr)

    @abstractmethod
    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]: ...

    @property
    def name(self) -> str:
        """Name of the network in the options."""
        return str(self.config.model)

    def parameters(self) -> dict[str, Array]:
        """Return the network's parameters and position tables in float64, by name."""
        return {name: value.numpy().astype(np.float64) for name, value in self.model.state_dict().items()}

    def layers(self) -> dict[str, NumPy]:
        """Run the network and return the tensors of `recorded_blocks` and `outputs` in float32, by name."""
        with paddle.no_grad(), autocast(self.precision), recorded_blocks(self.model) as blocks:
            outputs = self.outputs()
        return {name: value.astype("float32").numpy() for name, value in {**blocks, **outputs}.items()}

    def backward(self) -> float:
        """Compute the gradients of the loss, clearing earlier ones, and return the loss."""
        self.model.clear_gradients()
        with autocast(self.precision):
            loss = self.loss()
        loss.backward()
        return float(loss)

    def gradients(self) -> dict[str, NumPy]:
        """Return the gradients of the trainable parameters by name; zeros for those that the loss does not reach."""
        found = {}
        for name, param in self.model.named_parameters():
            if not param.stop_gradient:
                found[name] = np.zeros(param.shape) if param.grad is None else param.grad.numpy()
        return found

    def tensors(self) -> list[Tensor]:
        """Return the values of `batch` as Paddle tensors on the device, in the same order."""
        return [paddle.to_tensor(value) for value in self.batch.values()]

    def arrays(self) -> list[NumPy]:
        """Return the values of `batch` as arrays for the oracle, with floats in float64, in the same order."""
        values = self.batch.values()
        return [value.astype(np.float64) if value.dtype == np.float32 else value for value in values]

    def _draw_images(self, batch_size: int, rng: np.random.Generator) -> NumPy:
        encoder = self.model.encoder
        channels = encoder.patch_embed.proj.weight.shape[1]
        return rng.standard_normal((batch_size, channels, *encoder.img_size), np.float32)


AnyCase: TypeAlias = Case[PretrainConfig]
