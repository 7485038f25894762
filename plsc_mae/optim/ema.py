"""Exponential moving average of a network's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.errors import CheckpointError
from plsc_mae.parallel.tensor import my_part, shards_of


class WeightAverage:
    """Exponential moving average of a network's `state_dict`, in float32 (timm 0.3.2 `ModelEma`).

    The average starts as a copy of the network. Buffers of the state are averaged like parameters. Entries that are not
    floating-point are copied from the network.

    Args:
        model: network to average; its state is modified only by `applied`.
        decay: weight of the previous average in an update.
    """

    def __init__(self, model: nn.Layer, decay: float) -> None:
        self.decay = decay
        self._model = model
        self._average = {name: _float32_copy(tensor) for name, tensor in model.state_dict().items()}

    @paddle.no_grad()
    def update(self) -> None:
        """Update the average after an optimizer step: average = decay * average + (1 - decay) * weights."""
        share = paddle.full([1], 1.0 - self.decay)
        for name, tensor in self._model.state_dict().items():
            average = self._average[name]
            if not tensor.is_floating_point():
                paddle.assign(tensor, output=average)
            else:
                average.lerp_(tensor if tensor.dtype == paddle.float32 else tensor.astype("float32"), share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged state within the context; afterwards restore its own state exactly."""
        tensors = self._model.state_dict()
        weights = {name: tensor.clone().detach() for name, tensor in tensors.items()}
        try:
            _assign(tensors, self._average)
            yield
        finally:
            _assign(tensors, weights)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged tensors by name; of a sharded parameter, only the part of this process."""
        return dict(self._average)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore the average from `state`, whole arrays by name; keep only this process's part of a sharded parameter.

        Entries that the network lacks are ignored.

        Raises:
            CheckpointError: an entry is missing or has another shape.
        """
        shards = shards_of(self._model)
        parts: dict[str, np.ndarray] = {}
        for name, average in self._average.items():
            part = my_part(state[name], shards.get(name), average.shape) if name in state else None
            if part is None:
                found = f"has shape {list(state[name].shape)}" if name in state else "is missing"
                raise CheckpointError(
                    f"the averaged weights do not fit this network: {name} {found}, expected shape "
                    f"{list(average.shape)}; resume with the model and options of the first run"
                )
            parts[name] = part
        for name, average in self._average.items():
            average.set_value(paddle.to_tensor(parts[name]).astype(average.dtype))


def _float32_copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return copy.astype("float32") if copy.is_floating_point() else copy


def _assign(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        value = values[name]
        paddle.assign(value if value.dtype == tensor.dtype else value.astype(tensor.dtype), output=tensor)
