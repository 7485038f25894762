"""Activation recomputation: the backward pass runs the forward pass of blocks again, which saves memory."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute


class Recomputable(nn.Layer):
    """A layer that can recompute its activations in the backward pass instead of storing them (Chen et al. 2016).

    The second forward pass repeats the random draws of the first, so the gradients stay the same.
    """

    recompute: bool = False  # whether the layer recomputes its activations in training

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of `forward`; in training with `recompute` set, the backward pass will run it again."""
        if self.recompute and self.training and paddle.is_grad_enabled():
            # Paddle's default, the reentrant kind, loses gradients if an input needs none.
            return recompute(super().__call__, *args, use_reentrant=False, **kwargs)
        return super().__call__(*args, **kwargs)


def keep_no_activations(model: nn.Layer) -> None:
    """Set `recompute` of each `Recomputable` layer of a network to whether that layer has trained parameters."""
    for layer in model.sublayers():
        if isinstance(layer, Recomputable):
            layer.recompute = any(not param.stop_gradient for param in layer.parameters())
