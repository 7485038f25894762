"""Measurement of a reference network in float64: outputs of its layers, gradients, and several updates."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plsc_mae.parity.references.exchange import Arrays, Message

Outputs = dict[str, Any]  # tensors by the name of a layer; always contains "loss"


@dataclass
class Network:
    """Reference network, ready to run."""

    model: Any  # the module, with the requested weights
    run: Callable[[], Outputs]  # runs the network on the batch and returns the loss and the other outputs
    inputs_of: dict[str, Any]  # modules whose input is recorded, by the name of the recorded tensor
    outputs_of: dict[str, Any]  # modules whose output is recorded, by the name of the recorded tensor
    names: dict[str, str]  # {name in the request: name in the module}; parameters without an entry have the same name
    versions: dict[str, str]  # versions of the packages that define the network


def main(build: Callable[[Message, str], Network]) -> None:
    """Read the request file of the command line, run the network, and write the answer file.

    Args:
        build: builds the network from the request and the folder of the checkout ("" for an installed package).
    """
    request, answer, *checkout = sys.argv[1:]
    message = Message.read(Path(request))
    torch.manual_seed(0)
    measure(build(message, checkout[0] if checkout else ""), message).write(Path(answer))


def load_strictly(model: Any, weights: Arrays, names: dict[str, str]) -> None:
    """Load weights in float64.

    Args:
        model: the module; it becomes a float64 module in evaluation mode.
        weights: arrays by name.
        names: {name in `weights`: name in the module}; parameters without an entry have the same name.

    Raises:
        RuntimeError: names are missing or unexpected, or shapes differ.
    """
    model.double().eval()
    tensors = {names.get(name, name): torch.from_numpy(value.copy()).double() for name, value in weights.items()}
    model.load_state_dict(tensors, strict=True)


def batch_tensors(message: Message) -> list[Any]:
    """Return the tensors of the request's batch in their order, with floats in float64."""
    tensors = [torch.from_numpy(value) for value in message.groups["batch"].values()]
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def measure(network: Network, message: Message) -> Message:
    """Run the network forward and backward, then train it; return the layers, gradients, losses and trained weights."""
    with _recorded(network) as layers:
        outputs = network.run()
    outputs["loss"].backward()
    found = {name: tensor.detach() for name, tensor in {**layers, **outputs}.items()}
    parameters = dict(network.model.named_parameters())
    requested = {name: parameters.get(network.names.get(name, name)) for name in message.groups["weights"]}
    trained = {name: p for name, p in requested.items() if p is not None and p.requires_grad}
    groups = {
        "layers": {name: tensor.double().numpy() for name, tensor in found.items()},
        "gradients": {name: p.grad.numpy().copy() for name, p in trained.items() if p.grad is not None},
        "losses": {"losses": np.array(_train(network, list(trained.values()), message.settings))},
        "trained": {name: p.detach().numpy() for name, p in trained.items()},
    }
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__, **network.versions}
    return Message({"versions": versions}, groups)


def _train(network: Network, parameters: list[Any], settings: dict[str, Any]) -> list[float]:
    """Train with AdamW as the originals do, without weight decay of one-dimensional parameters (and so of biases).

    Returns:
        The loss before each update.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings["weight_decay"]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings["eps"])
    losses = []
    for rate in settings["rates"]:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = network.run()["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@contextlib.contextmanager
def _recorded(network: Network) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that receives the recorded inputs and outputs by name; of a tuple, only its first item."""
    found: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        found[name] = value[0] if isinstance(value, tuple) else value

    def before(name: str) -> Callable[..., None]:
        return lambda _module, inputs: keep(name, inputs)

    def after(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: keep(name, output)

    handles = [module.register_forward_pre_hook(before(name)) for name, module in network.inputs_of.items()]
    handles += [module.register_forward_hook(after(name)) for name, module in network.outputs_of.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def blocks(prefix: str, modules: Any) -> dict[str, Any]:
    """Return the blocks of a stack by name: "PREFIX.blocks.0", "PREFIX.blocks.1", ..."""
    return {f"{prefix}.blocks.{i}": module for i, module in enumerate(modules)}
