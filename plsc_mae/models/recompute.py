"""Blocks that compute their activations twice to save memory."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute


class Recomputable(nn.Layer):
    """A layer whose activations may be computed again in the backward pass instead of being kept (Chen et al. 2016).

    Gradients are the same bit for bit, also with what is drawn at random.

    Attributes:
        recompute: whether to.
    """

    recompute: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`."""
        if self.recompute and self.training and paddle.is_grad_enabled():
            # Paddle's default, the reentrant kind, loses gradients where an input needs none.
            return recompute(super().__call__, *args, use_reentrant=False, **kwargs)
        return super().__call__(*args, **kwargs)


def keep_no_activations(model: nn.Layer) -> None:
    """Let every block of a network that is trained be computed again in the backward pass."""
    for layer in model.sublayers():
        if isinstance(layer, Recomputable):
            layer.recompute = any(not param.stop_gradient for param in layer.parameters())
