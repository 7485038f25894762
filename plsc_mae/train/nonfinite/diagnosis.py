"""Finds out about a bad update what can still be found: images, layer, gradients; and writes it down."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.data.imagefolder import ImageDataset
from plsc_mae.data.loader import BatchLoader
from plsc_mae.data.seeding import SampleKey, device_seed
from plsc_mae.errors import UserError
from plsc_mae.methods.base import Batch
from plsc_mae.train.checkpoint.state import Progress, RunState
from plsc_mae.train.log.append_file import replace_content
from plsc_mae.train.nonfinite.exchange import UpdateNumbers
from plsc_mae.train.step import Stepper, autocast

logger = logging.getLogger(__name__)

MOST_NAMED = 5  # processes in a sentence


class Diagnosis:
    """Looks at the update that a run stands before.

    Args:
        state: of the run.
        stepper: whose update it is.
        loader: where the images come from.
    """

    def __init__(self, state: RunState, stepper: Stepper, loader: BatchLoader) -> None:
        self.state, self.stepper, self.loader = state, stepper, loader
        self.config, self.world, self.task = state.config, state.world, state.task

    def suspects(self, numbers: UpdateNumbers, progress: Progress) -> dict[str, Any]:
        """Where the run stands, and the images of the process with the largest loss."""
        process = max(range(len(numbers.losses)), key=numbers.losses.__getitem__)
        samples = described(self.loader, [key for keys in self._keys(progress, process) for key in keys])
        return {"epoch": progress.epoch, "lr": self._lr, "process": process, "samples": samples}

    def report(self, numbers: UpdateNumbers, progress: Progress, losses: Sequence[Tensor]) -> str:
        """Write a file in every process that is concerned, and return the sentence that says what happened.

        Args:
            numbers: of the update.
            progress: where the run stands.
            losses: of this process, one for each iteration of the group.
        """
        step, bad = progress.step + 1, numbers.bad_losses
        what = f"loss became {numbers.losses[bad[0]]}" if bad else f"grad_norm became {numbers.norm}"
        if bad and self.world.processes > 1:
            named = ", ".join(map(str, bad[:MOST_NAMED])) + (", ..." if len(bad) > MOST_NAMED else "")
            what += f" in process{'es' if len(bad) > 1 else ''} {named}"
        scale = f", loss scale {self.stepper.loss_scale:g}" if self.stepper.scaler.is_enable() else ""
        story = f"{what} at step {step} (epoch {progress.epoch}, learning rate {self._lr:.3g}{scale})"
        if not bad or not {self.world.process, *self.world.tensor.ranks, *self.world.pipeline.ranks}.isdisjoint(bad):
            details = self._details(progress, losses) if bad else self._gradients(progress)
            record = {
                "what": what,
                "step": step,
                "epoch": progress.epoch,
                "iteration": progress.batches_done,
                "process": self.world.process,
                "lr": self._lr,
                "loss_scale": self.stepper.loss_scale,
                "grad_norm": _for_json(numbers.norm),
                "losses": [_for_json(loss) for loss in numbers.losses],
            }
            path = Path(self.config.output_dir) / f"nonfinite-{step}-rank{self.world.process}.json"
            story += _place(details) + _write(path, {**record, **details})
        self.world.barrier()  # who ends the run first would have the others ended too
        return story

    @property
    def _lr(self) -> float:
        return float(self.stepper.optimizer.get_lr())

    def _keys(self, progress: Progress, process: int) -> list[list[SampleKey]]:
        """Samples of each iteration of the group that ends here."""
        rank = process // self.world.tensor.size % self.world.size
        first = progress.batches_done // self.config.accum_iter * self.config.accum_iter
        return [keys_of(self.loader, progress.epoch, i, rank) for i in range(first, progress.batches_done + 1)]

    def _gradients(self, progress: Progress) -> dict[str, Any]:
        keys = [key for keys in self._keys(progress, self.world.process) for key in keys]
        names = bad_gradients(self.state.params)
        return {"layer": None, "gradients": names, "samples": described(self.loader, keys)}

    def _details(self, progress: Progress, losses: Sequence[Tensor]) -> dict[str, Any]:
        """The first bad iteration of the group, run again."""
        groups = self._keys(progress, self.world.process)
        bad = [number for number, loss in enumerate(losses) if not is_finite(loss)]
        if not bad:  # another stage of a pipeline has the loss
            return {"layer": None, "samples": described(self.loader, [key for keys in groups for key in keys])}
        keys, iteration = groups[bad[0]], progress.batches_done + 1 - len(losses) + bad[0]
        details: dict[str, Any] = {"layer": None, "samples": described(self.loader, keys)}
        if self.world.pipeline.size > 1:
            return details
        try:
            batch = batch_of(self.loader, keys)
        except UserError as error:
            return {**details, "error": str(error)}
        details["layer"] = first_layer(self.task, lambda: self._forward(batch, progress.epoch, iteration))
        return details

    def _forward(self, batch: Batch, epoch: int, iteration: int) -> None:
        """Repeat the forward pass of an iteration of this process, without the other processes that share the data."""
        paddle.seed(device_seed(self.config.seed, epoch, iteration, self.world.stream))
        with autocast(self.stepper.precision):
            self.task(self.task.prepare(batch))


def _place(details: dict[str, Any]) -> str:
    if details["layer"]:
        return f", first in the output of {details['layer']}"
    if details.get("gradients"):
        return f", first in the gradient of {details['gradients'][0]}"
    return ""


def _write(path: Path, record: dict[str, Any]) -> str:
    """Write a report; returns the end of a sentence that points to it."""
    try:
        replace_content(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        logger.warning("cannot write %s: %s", path, error.strerror)
        return ""
    return f"; {path} has the images"


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


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


def keys_of(loader: BatchLoader, epoch: int, iteration: int, rank: int) -> list[SampleKey]:
    """The samples of one of the processes that share the data."""
    sampler = copy.copy(loader.sampler)
    sampler.rank = rank
    sampler.set_position(epoch, iteration)
    return next(iter(sampler))


def batch_of(loader: BatchLoader, keys: list[SampleKey]) -> Batch:
    """Read samples again.

    Raises:
        DataError: a file can no longer be read.
    """
    samples = [loader.dataset[key] for key in keys]
    return {name: paddle.to_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def described(loader: BatchLoader, keys: list[SampleKey]) -> list[dict[str, Any]]:
    """Number and, where there are files, path of samples; with --bad_image skip another file may have stood in."""
    dataset = loader.dataset
    if isinstance(dataset, ImageDataset):
        return [{"index": key.index, "path": dataset.images.path(key.index)} for key in keys]
    return [{"index": key.index} for key in keys]
