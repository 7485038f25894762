"""Diagnosis of a non-finite update: a report of its images, first bad layer and bad gradients."""

from __future__ import annotations

import copy
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
from plsc_mae.data.transfer import device_batch
from plsc_mae.errors import UserError
from plsc_mae.methods.base import Batch
from plsc_mae.names import as_json, escape_name
from plsc_mae.train.checkpoint.state import Progress, RunState
from plsc_mae.train.log.append_file import replace_content
from plsc_mae.train.nonfinite.exchange import UpdateNumbers
from plsc_mae.train.precision import autocast

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # largest number of processes that a message lists


class Diagnosis:
    """Diagnosis of the current update before it is applied."""

    def __init__(self, state: RunState, loader: BatchLoader) -> None:
        self.state, self.loader = state, loader
        self.config, self.world, self.stepper = state.config, state.world, state.stepper

    def suspects(self, numbers: UpdateNumbers, progress: Progress) -> dict[str, Any]:
        """Return fields of a report: "epoch", "lr", the "process" with the largest loss, and its "samples"."""
        process = max(range(len(numbers.losses)), key=numbers.losses.__getitem__)
        return {
            "epoch": progress.epoch,
            "lr": self._lr,
            "process": process,
            "samples": self._samples(progress, process),
        }

    def report(self, numbers: UpdateNumbers, progress: Progress, losses: Sequence[Tensor]) -> str:
        """Write a report in every affected process and return a one-sentence summary without its period.

        All processes must call. A report that cannot be written only causes a warning.

        Args:
            numbers: losses and gradient norm of the update.
            progress: position of the run.
            losses: losses of this process, one per iteration of the group.
        """
        step, bad = progress.step + 1, numbers.bad_losses
        what = self._summarize(numbers)
        scale = f", loss scale {self.stepper.scaler.value:g}" if self.stepper.scaler.enabled else ""
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
                "loss_scale": self.stepper.scaler.value,
                "grad_norm": _for_json(numbers.norm),
                "losses": [_for_json(loss) for loss in numbers.losses],
            }
            path = Path(self.config.output_dir) / f"nonfinite-{step}-rank{self.world.process}.json"
            story += _origin(details) + _write(path, {**record, **details})
        self.world.barrier()  # a process that ends the run also ends the others, which must have written first
        return story

    def _summarize(self, numbers: UpdateNumbers) -> str:
        bad = numbers.bad_losses
        if not bad:
            return f"grad_norm became {numbers.norm}"
        what = f"loss became {numbers.losses[bad[0]]}"
        if self.world.processes == 1:
            return what
        named = ", ".join(map(str, bad[:MAX_NAMED])) + (", ..." if len(bad) > MAX_NAMED else "")
        return f"{what} in process{'es' if len(bad) > 1 else ''} {named}"

    @property
    def _lr(self) -> float:
        return float(self.stepper.optimizer.get_lr())

    def _keys(self, progress: Progress, process: int) -> list[list[SampleKey]]:
        """Return the sample keys of `process` for each iteration of the accumulation group that is ending."""
        rank = process // self.world.tensor.size % self.world.size
        start = self.state.accumulation.group(progress.batches_done).start
        return [keys_of(self.loader, progress.epoch, i, rank) for i in range(start, progress.batches_done + 1)]

    def _samples(self, progress: Progress, process: int) -> list[dict[str, Any]]:
        """Return `describe_samples` for `process` in the accumulation group that is ending."""
        return describe_samples(self.loader, [key for keys in self._keys(progress, process) for key in keys])

    def _gradients(self, progress: Progress) -> dict[str, Any]:
        names = bad_gradients(self.stepper.params)
        return {"layer": None, "gradients": names, "samples": self._samples(progress, self.world.process)}

    def _details(self, progress: Progress, losses: Sequence[Tensor]) -> dict[str, Any]:
        """Repeat the forward pass of the group's first non-finite iteration and return fields of the report.

        The fields are "samples", "layer" (the first one with a non-finite output, None if unknown) and, if the images
        can no longer be read, "error".
        """
        bad = [number for number, loss in enumerate(losses) if not is_finite(loss)]
        if not bad:  # another pipeline stage computed the loss
            return {"layer": None, "samples": self._samples(progress, self.world.process)}
        keys = self._keys(progress, self.world.process)[bad[0]]
        iteration = progress.batches_done + 1 - len(losses) + bad[0]
        details: dict[str, Any] = {"layer": None, "samples": describe_samples(self.loader, keys)}
        if self.world.pipeline.size > 1:
            return details
        try:
            batch = read_batch(self.loader, keys)
        except UserError as error:
            return {**details, "error": str(error)}
        details["layer"] = first_bad_layer(
            self.state.task, lambda: self._repeat_forward(batch, progress.epoch, iteration)
        )
        return details

    def _repeat_forward(self, batch: Batch, epoch: int, iteration: int) -> None:
        """Repeat the forward pass of an iteration without the other data-parallel processes."""
        paddle.seed(device_seed(self.config.seed, epoch, iteration, self.world.stream))
        with autocast(self.stepper.precision):
            self.state.task(self.state.task.prepare(batch))


def _origin(details: dict[str, Any]) -> str:
    if details["layer"]:
        return f", first in the output of {details['layer']}"
    if details.get("gradients"):
        return f", first in the gradient of {details['gradients'][0]}"
    return ""


def _write(path: Path, record: dict[str, Any]) -> str:
    """Write a report and return the clause that names its file; if writing fails, warn and return ""."""
    try:
        replace_content(path, (as_json(record, indent=1) + "\n").encode())
    except OSError as error:
        logger.warning("cannot write %s: %s", path, error.strerror)
        return ""
    return f"; {path} lists the images"


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


@paddle.no_grad()
def first_bad_layer(network: nn.Layer, forward: Callable[[], Any]) -> str | None:
    """Run a forward pass and return the name of the first layer with a non-finite output.

    Args:
        network: network whose sublayers are examined.
        forward: runs the forward pass, after seeding the random generator itself.

    Returns:
        The dotted name; None if no such layer was found. Outputs other than tensors, and lists, tuples and mappings of
        them, are not examined.
    """
    found: list[str] = []

    def hook_for(name: str) -> Callable[[Any, Any, Any], None]:
        def examine(_layer: Any, _inputs: Any, output: Any) -> None:
            if not found and not all(is_finite(tensor) for tensor in _tensors(output)):
                found.append(name)

        return examine

    hooks = [layer.register_forward_post_hook(hook_for(name)) for name, layer in network.named_sublayers()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def bad_gradients(params: Mapping[str, Tensor], limit: int = 3) -> list[str]:
    """Return the names of parameters with non-finite gradients, ordered from the network's output to its input.

    Args:
        params: parameters by name, in the order of the forward pass.
        limit: largest number of names.
    """
    names: list[str] = []
    for name, param in list(params.items())[::-1]:
        if len(names) < limit and param.grad is not None and not is_finite(param.grad):
            names.append(name)
    return names


def is_finite(tensor: Tensor) -> bool:
    """Return whether all elements are finite, as integers always are; this waits for the device."""
    return not tensor.is_floating_point() or bool(paddle.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple, Mapping)):
        for item in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(item)


def keys_of(loader: BatchLoader, epoch: int, iteration: int, rank: int) -> list[SampleKey]:
    """Return the sample keys of an iteration in the data-parallel process `rank`."""
    sampler = copy.copy(loader.sampler)
    sampler.rank = rank
    sampler.set_position(epoch, iteration)
    return next(iter(sampler))


def read_batch(loader: BatchLoader, keys: list[SampleKey]) -> Batch:
    """Read the samples of `keys` again and return them as a batch.

    Raises:
        DataError: a file can no longer be read.
    """
    samples = [loader.dataset[key] for key in keys]
    return device_batch({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})


def describe_samples(loader: BatchLoader, keys: list[SampleKey]) -> list[dict[str, Any]]:
    """Return a dictionary {"index", "path"} per sample, without "path" if the data set does not consist of files.

    With --bad_image skip, an unreadable file at this path was replaced by another during training.
    """
    dataset = loader.dataset
    if isinstance(dataset, ImageDataset):
        return [{"index": key.index, "path": escape_name(dataset.images.path(key.index))} for key in keys]
    return [{"index": key.index} for key in keys]
