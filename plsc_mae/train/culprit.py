"""Finds where numbers first stop being finite: a layer of the forward pass, or a parameter's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import paddle
from paddle import Tensor, nn


@paddle.no_grad()
def first_layer(network: nn.Layer, forward: Callable[[], Any]) -> str | None:
    """Run a forward pass and tell the first layer to end with an output that is not finite.

    Args:
        network: whose sublayers are looked at.
        forward: the pass; what it draws must be seeded by itself.

    Returns:
        Its dotted name; None where all outputs are finite.
    """
    found: list[str] = []

    def looks(name: str) -> Callable[[Any, Any, Any], None]:
        def look(_layer: Any, _inputs: Any, output: Any) -> None:
            if not found and not all(is_finite(tensor) for tensor in _tensors(output)):
                found.append(name)

        return look

    hooks = [layer.register_forward_post_hook(looks(name)) for name, layer in network.named_sublayers()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def bad_gradients(params: Mapping[str, Tensor], most: int = 3) -> list[str]:
    """Names of parameters whose gradient is not finite, from the network's output towards its input.

    Args:
        params: in the order of the forward pass.
        most: how many names are enough.
    """
    names: list[str] = []
    for name, param in list(params.items())[::-1]:
        if len(names) < most and param.grad is not None and not is_finite(param.grad):
            names.append(name)
    return names


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are; waits for the device."""
    return not tensor.is_floating_point() or bool(paddle.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)
