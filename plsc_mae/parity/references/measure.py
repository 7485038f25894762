"""Measurement of a reference: its layers, gradients and some updates, in float64."""

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

Outputs = dict[str, Any]  # tensors by the name of a layer; "loss" is among them


@dataclass
class Subject:
    """A network of a reference, ready to run.

    Attributes:
        model: the network, with the request's weights.
        run: computes the loss and what else the network gives.
        entered: modules by the name of the layer that enters them.
        left: modules by the name of the layer that leaves them.
        names: the network's names of parameters by the request's, where they differ.
        versions: of the code that runs.
    """

    model: Any
    run: Callable[[], Outputs]
    entered: dict[str, Any]
    left: dict[str, Any]
    names: dict[str, str]
    versions: dict[str, str]


def main(build: Callable[[Message, str], Subject]) -> None:
    """Answer the request that the command line names.

    Args:
        build: makes the network of a request, given the checkout if there is one.
    """
    request, answer, *checkout = sys.argv[1:]
    message = Message.read(Path(request))
    torch.manual_seed(0)
    measure(build(message, checkout[0] if checkout else ""), message).write(Path(answer))


def load_strictly(model: Any, weights: Arrays, names: dict[str, str]) -> None:
    """Load float64 weights; a name too many or too few is an error."""
    model.double().eval()
    tensors = {names.get(name, name): torch.from_numpy(value.copy()).double() for name, value in weights.items()}
    model.load_state_dict(tensors, strict=True)


def batch_tensors(message: Message) -> list[Any]:
    """Return the batch as tensors, floats in float64."""
    tensors = [torch.from_numpy(value) for value in message.groups["batch"].values()]
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def measure(subject: Subject, message: Message) -> Message:
    """Run the network forward and backward, then train it."""
    with _recorded(subject) as layers:
        outputs = subject.run()
    outputs["loss"].backward()
    found = {name: tensor.detach() for name, tensor in {**layers, **outputs}.items()}
    parameters = dict(subject.model.named_parameters())
    theirs = {name: parameters.get(subject.names.get(name, name)) for name in message.groups["weights"]}
    trained = {name: p for name, p in theirs.items() if p is not None and p.requires_grad}
    groups = {
        "layers": {name: tensor.double().numpy() for name, tensor in found.items()},
        "gradients": {name: p.grad.numpy().copy() for name, p in trained.items() if p.grad is not None},
        "losses": {"losses": np.array(_train(subject, list(trained.values()), message.settings))},
        "trained": {name: p.detach().numpy() for name, p in trained.items()},
    }
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__, **subject.versions}
    return Message({"versions": versions}, groups)


def _train(subject: Subject, parameters: list[Any], settings: dict[str, Any]) -> list[float]:
    """Train with AdamW as the originals do: no decay of one-dimensional parameters, biases included."""
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
        loss = subject.run()["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@contextlib.contextmanager
def _recorded(subject: Subject) -> Iterator[dict[str, Any]]:
    """Collect inputs and outputs of a subject's modules; the first tensor of a tuple."""
    found: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        found[name] = value[0] if isinstance(value, tuple) else value

    def before(name: str) -> Callable[..., None]:
        return lambda _module, inputs: keep(name, inputs)

    def after(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: keep(name, output)

    handles = [module.register_forward_pre_hook(before(name)) for name, module in subject.entered.items()]
    handles += [module.register_forward_hook(after(name)) for name, module in subject.left.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def blocks(prefix: str, modules: Any) -> dict[str, Any]:
    """Return the blocks of a stack by the names of their layers."""
    return {f"{prefix}.blocks.{i}": module for i, module in enumerate(modules)}
