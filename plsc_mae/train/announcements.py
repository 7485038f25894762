"""Messages of a run to its user: what it will do, how to stop and continue it, and how it ended."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import plsc_mae
from plsc_mae import console, runtime
from plsc_mae.config import LinprobeConfig, TrainingConfig
from plsc_mae.config.schema import to_line
from plsc_mae.data.imagefolder import ImageDataset
from plsc_mae.data.loader import BatchLoader
from plsc_mae.methods.contract import describe_changes
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint.folder import CONTINUED_SESSION_OPTIONS, config_path
from plsc_mae.train.checkpoint.state import Progress, RunState
from plsc_mae.train.log.run_logger import duration
from plsc_mae.train.scaling import images_per_update, peak_lr, scales_with_batch
from plsc_mae.wording import counted, guides, in_millions, span

# Options that the row "options" of the overview leaves out: other rows show them, or they concern the console only.
SHOWN_OPTIONS = (
    *("model", "data_path", "output_dir", "epochs", "batch_size", "accum_iter", "lr", "blr", "max_train_step"),
    *("quiet", "json"),
)
FEW_IMAGES = 1000
SHOWN_CLASSES = 5  # whose numbers of images the overview lists
IN_MEMORY = "<"  # first character of a data path for images in memory


# ----------------------------------------------------------------------------------------------------- before


def announce_command(config: TrainingConfig, world: World) -> None:
    """Print the title of the overview in the main process, before images are checked and the network is built."""
    if world.is_main:
        default = " (the default)" if config.model == type(config).model else ""
        console.report(
            f"plsc_mae {plsc_mae.__version__}: {config.phase} of {config.model}{default}, method {config.method}"
        )


def announce_plan(
    state: RunState, loader: BatchLoader, *, n_parameters: int, planned_memory: int | None = None, keep_best: str = ""
) -> None:
    """Print the rows of the overview: data, network, recipe, changed options, memory and time of a run.

    Args:
        state: state of the run.
        loader: training batches of this process.
        n_parameters: number of trainable parameters of the whole network.
        planned_memory: estimated bytes of tensors at the peak of an update; None if there is no estimate.
        keep_best: name of the metric that chooses checkpoint-best.pd; "" without one.
    """
    config, world, updates = state.config, state.world, state.accumulation.updates
    images, effective_batch = len(loader.dataset), images_per_update(config, world)
    unreadable = loader.dataset.images.unreadable.count if isinstance(loader.dataset, ImageDataset) else 0
    options = to_line(config, changed_only=True, without=SHOWN_OPTIONS)
    kernels = ", deterministic kernels" if config.deterministic and world.is_gpu else ""
    rows = {
        "data": "; ".join(
            [
                f"{config.data_path}: {counted(images, 'image')}{_replaced(unreadable)}, "
                f"{counted(updates, 'update')} per epoch",
                *_balance(loader, keep_best),
                *_incomplete_parts(state, loader),
                *([f"options for small sets: {guides('few-images')}"] if images <= FEW_IMAGES else []),
            ]
        ),
        "network": f"{config.model}: {in_millions(n_parameters)} trainable parameters{describe_changes(config)}, "
        f"{state.stepper.precision.note}{kernels}",
        "recipe": _recipe(config, world, updates),
        "options": f"{options}; the others have the defaults of {config.method}" if options else "all by default",
        "memory": _memory(planned_memory, config, world),
        "time": "measured in the first updates",
    }
    for label, text in rows.items():
        console.report_row(label, text)
    event: dict[str, Any] = {
        **{"event": "plan", "method": config.method, "phase": config.phase, "model": config.model},
        **{"images": images, "unreadable_images": unreadable},
        **{"epochs": config.epochs, "updates_per_epoch": updates},
        **{"images_per_update": effective_batch, "peak_lr": peak_lr(config, effective_batch)},
        **{"n_parameters": n_parameters, "planned_memory_bytes": planned_memory},
    }
    console.report(None, event)


def _replaced(unreadable: int) -> str:
    """Return a note on images that the check of the files found to be unreadable; "" without such images."""
    others = "another takes its place" if unreadable == 1 else "others take their places"
    return f" ({unreadable} of them unreadable: {others})" if unreadable else ""


def _recipe(config: TrainingConfig, world: World, updates: int) -> str:
    effective_batch = images_per_update(config, world)
    parts = f"{world}" if world.size == world.processes else f"{world.size} in {world}"
    limit = f", of which {config.max_train_step} (--max_train_step)" if config.max_train_step else ""
    return (
        f"{counted(config.epochs, 'epoch')}, {counted(updates * config.epochs, 'update')}{limit}; batch "
        f"{config.batch_size} x {parts} x accum_iter {config.accum_iter} = {counted(effective_batch, 'image')} per "
        f"update; {_rates(config, effective_batch)}"
    )


def _rates(config: TrainingConfig, effective_batch: int) -> str:
    """Return the peak learning rate of a run as text, or those of a sweep."""
    name = "blr" if config.lr is None else "lr"
    rates = [getattr(config, name)]
    if isinstance(config, LinprobeConfig) and config.lr_sweep:
        rates = list(config.lr_sweep)
    peaks = ", ".join(f"{peak_lr(dataclasses.replace(config, **{name: rate}), effective_batch):.4g}" for rate in rates)
    given = ", ".join(f"{rate:g}" for rate in rates)
    base = f" ({given} x {effective_batch} / 256)" if scales_with_batch(config) else ""
    return f"learning rate{'s' if rates[1:] else ''} {peaks}{base}"


def _memory(planned: int | None, config: TrainingConfig, world: World) -> str:
    if planned is None:
        return "no estimate for this run; the peak is logged as mem"
    size = f"{planned / 2**30:.1f} GiB" if planned >= 2**30 else f"{planned / 2**20:.0f} MiB"
    accuracy = "not measured on GPUs" if world.is_gpu else "within 20 % on CPU; libraries and loaders come on top"
    return f"{size} per process for tensors, as `plsc-mae plan {config.phase}` estimates it ({accuracy})"


def _balance(loader: BatchLoader, keep_best: str) -> Iterator[str]:
    """Yield a sentence if the classes are drawn equally often, with the metric that chooses checkpoint-best.pd."""
    labels = loader.sampler.labels
    if labels is not None:
        sizes = np.unique(labels, return_counts=True)[1].tolist()
        images = ", ".join(map(str, sizes)) if len(sizes) <= SHOWN_CLASSES else span(min(sizes), max(sizes))
        best = f", and {keep_best} chooses checkpoint-best.pd" if keep_best else ""
        yield f"each class drawn equally often ({images} images){best}"


def _incomplete_parts(state: RunState, loader: BatchLoader) -> Iterator[str]:
    """Yield a sentence if an epoch leaves out images, and one if its last accumulation group is incomplete."""
    accumulation, batch = state.accumulation, state.config.batch_size * state.world.size
    left = len(loader.dataset) - accumulation.iterations * batch
    if left:
        images = counted(left, "image")
        yield f"each epoch leaves out {images}, a new choice every time: too few to fill a batch of {batch}"
    last = accumulation.group(accumulation.iterations - 1).size
    if last < accumulation.accum_iter:
        yield f"the last update of an epoch has {last} of {counted(accumulation.accum_iter, 'iteration')}"


def announce_start(config: TrainingConfig, world: World, run: str, at: Progress, resumed: Path | None) -> None:
    """Print the output folder of a run, and how to stop and continue it.

    Args:
        config: options of the run.
        world: processes of the run.
        run: id of the run.
        at: position at which the run starts.
        resumed: the checkpoint that it resumes from; None without one.
    """
    if not config.save_ckpt:
        saves = "no checkpoints"
    elif config.save_ckpt_freq >= config.epochs:
        saves = "a checkpoint after the last epoch"
    else:
        saves = f"checkpoints {_every(config.save_ckpt_freq, 'epoch')}"
    steps = f" and {_every(config.save_ckpt_steps, 'update')}" if config.save_ckpt and config.save_ckpt_steps else ""
    console.report_row("output", f"run {run} writes to {config.output_dir}: options, logs, {saves}{steps}")
    command = continuation(config, world, run)
    if not config.save_ckpt:
        console.report_row("stop", "Ctrl-C; nothing is saved because of --no_save_ckpt")
    elif command is None:
        console.report_row("stop", f"Ctrl-C saves and stops; {_repetition(config)} continues the run")
    else:
        console.report_row("stop", "Ctrl-C saves and stops; this continues the run:")
        console.report(f"{' ' * console.LABEL_COLUMNS}{command}")
    start = {"run": run, "output_dir": config.output_dir, "epoch": at.epoch, "step": at.step}
    console.report(None, {"event": "start", **start, "resumed": str(resumed or ""), "continue": command})


def _every(number: int, noun: str) -> str:
    return f"every {noun}" if number == 1 else f"every {counted(number, noun)}"


def continuation(config: TrainingConfig, world: World, run: str) -> str | None:
    """Return the command that continues a run; None for images in memory, and for processes on several machines."""
    paths = (config.data_path, getattr(config, "eval_data_path", ""))
    if any(path.startswith(IN_MEMORY) for path in paths) or world.processes > runtime.local_processes():
        return None
    launch = f"launch --nproc_per_node {world.processes} " if world.processes > 1 else ""
    file = shlex.quote(os.fspath(config_path(config.output_dir, run)))
    resume = "" if type(config).auto_resume else " --auto_resume"  # config.yaml has the default, see SESSION_OPTIONS
    given = {name: value for name in CONTINUED_SESSION_OPTIONS if (value := getattr(config, name))}
    session = "".join(f" --{name}" + ("" if value is True else f" {value}") for name, value in given.items())
    return f"{console.program()} {launch}{config.phase} --config {file}{resume}{session}"


def _repetition(config: TrainingConfig) -> str:
    """Return the phrase "the same command", with the flags that it needs to continue the run."""
    other = " instead of --resume" if config.resume else " instead of --overwrite" if config.overwrite else ""
    return "the same command" if config.auto_resume and not other else f"the same command with --auto_resume{other}"


# ------------------------------------------------------------------------------------------------------- after


def describe_stop(state: RunState, at: Progress, *, iterations: int, saved: Path | None, moved: bool) -> str:
    """Return the text of a stop: the position of the run, what was saved, and how to continue.

    Args:
        state: state of the run.
        at: its position.
        iterations: iterations of an epoch.
        saved: the checkpoint of this position; None without one.
        moved: whether the position has changed since this start.
    """
    config = state.config
    position = f"epoch {at.epoch}, {at.batches_done} of {counted(iterations, 'iteration')}, step {at.step}"
    if not config.save_ckpt:
        return f"{position}; nothing is saved because of --no_save_ckpt"
    if not moved:
        return f"{position}; no update was made, so nothing was saved; the same command starts again"
    command = continuation(config, state.world, state.run)
    if command is None:
        return f"{position}; saved {saved}; {_repetition(config)} continues the run"
    return f"{position}; saved {saved}; this continues the run:\n{console.COMMAND_INDENT}{command}"


def announce_end(
    config: TrainingConfig,
    at: Progress,
    *,
    saved: Path | None,
    best: Path | None,
    best_epoch: int | None,
    first_step: int,
    seconds: float,
    stopped: bool,
) -> None:
    """Print the end of a run.

    After a stop, print only the event for --json, because the text of `describe_stop` is printed as an error.

    Args:
        config: options of the run.
        at: its position.
        saved: the last checkpoint; None without one.
        best: path of the checkpoint with the best metric; None if the run keeps none.
        best_epoch: its epoch; None if that is unknown.
        first_step: updates before this start of the run.
        seconds: time since this start.
        stopped: whether a signal stopped the run.
    """
    is_whole = at.epoch >= config.epochs
    reason = "finished" if is_whole else f"reached --max_train_step {config.max_train_step}"
    files = f", saved in {saved}" if saved is not None else ""
    if best is not None and at.best_step >= 0:
        epoch = "" if best_epoch is None else f"epoch {best_epoch}, "
        files += f"; the best one is {best} of {epoch}step {at.best_step}"
    continued = f", {at.step - first_step} of them since it was continued," if first_step else ""
    done = f"{at.epoch} of {counted(config.epochs, 'epoch')}, {counted(at.step, 'update')}{continued}"
    text = f"{reason}: {done} in {duration(seconds)}{files}"
    console.report(
        None if stopped else text,
        {
            **{"event": "end", "reason": "stopped" if stopped else "finished" if is_whole else "max_train_step"},
            **{"epoch": at.epoch, "step": at.step, "seconds": seconds},
            **{"checkpoint": str(saved or ""), "best": str(best or "")},
        },
    )
