"""`plsc-mae plan pretrain|finetune|linprobe`: estimate the cost of a run from its options."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from plsc_mae import runtime
from plsc_mae.config import ClassifyConfig, LinprobeConfig
from plsc_mae.config.plan import PlannedRun
from plsc_mae.data.imagefolder import find_images
from plsc_mae.errors import ConfigError, flag
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.classifier_weights import read_start
from plsc_mae.loading.encoder_sizes import settle_sizes
from plsc_mae.methods.base import Task
from plsc_mae.methods.contract import describe_changes
from plsc_mae.parallel.gpu import AMPERE, VOLTA, Capability, current_capability, has_gpu
from plsc_mae.plan.activations import HALF
from plsc_mae.plan.advice import Changes, remedy
from plsc_mae.plan.estimate import Estimate, estimate, precision_bytes
from plsc_mae.plan.measure import Measurement, measure
from plsc_mae.plan.sketch import Sketch, sketch
from plsc_mae.train.plausibility import check_accumulation
from plsc_mae.train.precision import choose_precision
from plsc_mae.wording import counted, in_millions

IMAGENET_IMAGES = 1281167
ASSUMED_SPEED, HOUR = 1000, 3600  # images/s without --images_per_second; seconds
GPU_MEMORY = 40.0  # GiB without --device_memory
MIB, GIB, GB = 2**20, 2**30, 1e9
SMALLEST_PART = 10_000  # parameters, 0.01 M
TOLERANCE = 0.2  # relative error of the memory estimate, see docs/reference/plan.md
NO_GPU = "no GPU here: this is a plan for GPUs; `--device cpu --measure` plans and times a run on this machine"
Row = tuple[str, str, str]  # label, value, note; a heading has no value
logger = logging.getLogger(__name__)


def run(config: PlannedRun) -> None:
    """Print the plan of a run.

    Raises:
        UserError: the run would refuse its options, an option cannot be planned, --data_path has no images, or the file
            of --stats or --finetune cannot be used.
    """
    if isinstance(config, LinprobeConfig) and config.cache_features:
        raise ConfigError(
            "--cache_features cannot be planned: every epoch of a planned run encodes its images; leave it out"
        )
    if config.measure and config.devices * config.tensor_parallel > 1:
        raise ConfigError("--measure runs in this process, on one device; leave --devices and --tensor_parallel out")
    config = _at_available_precision(_with_stored_options(config))
    drawn = sketch(config)
    found = estimate(drawn, config, config.devices, capability=_capability(config))
    rows = [
        *_network(drawn, config),
        *_schedule(drawn, config, found),
        *_memory(found),
        *_communication(found),
    ]
    network = f"{config.model}{describe_changes(config)}"
    print(f"plan of {config.phase} {network}: {_devices(config)}, {_arithmetic(config, found)}")
    print(_table(rows))
    print(_verdict(drawn, config, found))
    if config.measure:
        images = counted(config.batch_size * config.accum_iter, "image")
        print(f"measuring at least two updates of {images}; this takes long if the network is large", flush=True)
        measured = measure(config)
        print(_measured_speed(measured, config))
        print(_measured_memory(measured, found.usage.total))
    if config.device == "auto" and not has_gpu():
        print(NO_GPU, file=sys.stderr)  # the plan itself is the same on every machine


def _devices(config: PlannedRun) -> str:
    kind = "process" if config.device == "cpu" else "device"
    return f"{counted(config.devices, kind)} of {_memory_of_device(config):.4g} GiB (--device_memory)"


def _memory_of_device(config: PlannedRun) -> float:
    """Return the memory of a device in GiB."""
    if config.device_memory is not None:
        return config.device_memory
    return runtime.memory_bytes() / config.devices / GIB if config.device == "cpu" else GPU_MEMORY


def _with_stored_options(config: PlannedRun) -> PlannedRun:
    """Return `config` with the options that the run will take from its files of --stats and --finetune.

    If the file of --finetune does not exist here, a warning names it.
    """
    start = config.finetune if isinstance(config, ClassifyConfig) else ""
    if start and not Path(start).exists():
        logger.warning("%s %s does not exist here, so the plan has the sizes of --model", flag("finetune"), start)
        start = ""
    elif isinstance(config, ClassifyConfig) and (stored := read_start(config)) is not None:
        config = settle_sizes(config, stored)
    return pixel_settings.settle(config, None, start) if start or config.stats else config


def _plans_this_gpu(config: PlannedRun) -> bool:
    """Return True if the planned GPUs are like the one of this machine."""
    return config.device != "cpu" and config.flash is None and has_gpu()


def _at_available_precision(config: PlannedRun) -> PlannedRun:
    """Return `config`, but without --amp if the plan is for this machine's GPU and that GPU lacks mixed precision."""
    if not _plans_this_gpu(config):
        return config
    precision = choose_precision(config.amp, config.amp_dtype, True, config.amp_level)
    return dataclasses.replace(config, amp=precision.dtype is not None)


def _capability(config: PlannedRun) -> Capability:
    """Return this machine's compute capability, or, if other GPUs are planned, 7.0 if `flash` is False, else 8.0."""
    if _plans_this_gpu(config):
        return current_capability()
    return VOLTA if config.flash is False else AMPERE


def _arithmetic(config: PlannedRun, found: Estimate) -> str:
    if precision_bytes(config) != HALF:
        return "float32"
    some = f"flash attention in {found.flash_blocks} of {found.blocks} blocks"
    attention = {0: "no flash attention", found.blocks: "flash attention"}.get(found.flash_blocks, some)
    return f"mixed precision {config.amp_level}, {attention}"


def _network(drawn: Sketch, config: PlannedRun) -> Iterable[Row]:
    yield ("NETWORK", "", "")
    sizes = _sizes_by_part(drawn.task)
    for (part, frozen), count in sizes.items():
        yield (part, f"{count / 1e6:.2f} M", f"parameters{', frozen' if frozen else ''}")
    trained = sum(count for (_, frozen), count in sizes.items() if not frozen)
    yield ("all trained", f"{trained / 1e6:.2f} M", "parameters")
    extra = "; the tokenizer is not counted" if ("tokenizer", True) in sizes else ""
    yield ("forward", f"{2 * drawn.forward_macs / GB:.2f} GFLOP", f"per image{extra}")
    yield ("training", f"{2 * drawn.training_macs / GB:.2f} GFLOP", "per image, forward and backward")


def _sizes_by_part(task: Task) -> dict[tuple[str, bool], int]:
    """Count parameters by (part of the network, True if frozen); parts too small for the table add up to "others"."""
    sizes: dict[tuple[str, bool], int] = {}
    for name, param in task.named_parameters():
        _, part, *_ = name.split(".")  # model.encoder.blocks.0.norm1.weight belongs to the encoder
        key = part, param.stop_gradient
        sizes[key] = sizes.get(key, 0) + int(param.size)
    shown: dict[tuple[str, bool], int] = {}
    for (part, frozen), size in sizes.items():
        key = part if size >= SMALLEST_PART else "others", frozen
        shown[key] = shown.get(key, 0) + size
    return dict(sorted(shown.items(), key=lambda item: item[0][0] == "others"))


def _schedule(drawn: Sketch, config: PlannedRun, found: Estimate) -> Iterable[Row]:
    images, data = _count_images(config), found.layout.data
    iterations = images // (config.batch_size * data)
    if iterations == 0:
        raise ConfigError(f"{counted(images, 'image')} cannot fill one batch of {config.batch_size} x {data}")
    check_accumulation(config, iterations, data)
    updates = -(-iterations // config.accum_iter)
    total = images * config.epochs
    yield ("RUN", "", "")
    per_update = config.batch_size * data * config.accum_iter
    yield (
        "an update",
        counted(per_update, "image"),
        f"batch {config.batch_size} x {data} x accum_iter {config.accum_iter}",
    )
    yield ("an epoch", counted(updates, "update"), counted(images, "image"))
    yield (
        "all",
        counted(updates * config.epochs, "update"),
        f"{counted(config.epochs, 'epoch')}, {in_millions(total)} images",
    )
    exa = 2e-18 * drawn.training_macs * total
    yield ("", f"{exa:.1f} EFLOP" if exa >= 1 else f"{1000 * exa:.1f} PFLOP", "validation not counted")
    if config.images_per_second is not None:
        share = 2e-12 * drawn.training_macs * config.images_per_second / config.devices
        yield ("time", _time(total / config.images_per_second, 1), f"at {config.images_per_second:g} images/s")
        yield ("", f"{share:.1f} TFLOP/s", "of each device at that speed")
    elif config.device == "cpu" and not config.measure:
        yield ("time", "unknown", "give --measure to time updates here, or --images_per_second")
    elif not config.measure:
        how = "--images_per_second, or --measure where it will run"
        yield ("time", _time(total / ASSUMED_SPEED), f"at {ASSUMED_SPEED} images/s, an arbitrary speed; give {how}")


def _time(seconds: float, digits: int = 0) -> str:
    """Format a duration in hours with `digits` decimals, below an hour in minutes, below a minute in seconds."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:.{digits}f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _count_images(config: PlannedRun) -> int:
    if config.num_images is not None:
        return int(config.num_images)
    in_folders = not isinstance(config, ClassifyConfig) or config.data_set != "CIFAR"
    if config.data_path and in_folders:
        return len(find_images(config.data_path, "train"))
    return IMAGENET_IMAGES


def _memory(found: Estimate) -> Iterable[Row]:
    usage = found.usage
    yield (f"MEMORY of a device at its fullest moment ({usage.moment})", "", "")
    for label, size, note in (
        ("weights", usage.weights, "including frozen ones"),
        ("optimizer", usage.optimizer, "its state, averages and float32 copies of weights"),
        ("gradients", usage.gradients, ""),
        ("fused gradients", usage.exchange, "copies that devices exchange"),
        ("batch", usage.batch, "images, masks, targets"),
        ("activations", usage.activations, "kept for the backward pass, including 16-bit copies of weights"),
        ("working", usage.working, "temporary tensors"),
    ):
        if size:
            yield (label, f"{size / GIB:.2f} GiB", note)
    accuracy = f"within {TOLERANCE:.0%} of the allocator's peak on CPU; not measured on GPUs"
    yield ("all", f"{usage.total / GIB:.2f} GiB", accuracy)


def _communication(found: Estimate) -> Iterable[Row]:
    layout, traffic = found.layout, found.traffic
    if not any(traffic):
        return
    yield ("COMMUNICATION: bytes that a device sends in an update; it receives the same number", "", "")
    for label, size, note in (
        ("gradients", traffic.gradients, f"summed over {layout.data} devices"),
        ("sharding", traffic.sharding, f"weights gathered from {layout.data} devices"),
        ("tensor parallel", traffic.tensor, f"tokens summed over {layout.tensor} devices in every block"),
        ("pipeline", traffic.pipeline, f"tokens and their gradients between {layout.pipeline} stages"),
    ):
        if size:
            yield (label, f"{size / GB:.2f} GB", note)


def _verdict(drawn: Sketch, config: PlannedRun, found: Estimate) -> str:
    memory = _memory_of_device(config)
    limit = (1 - config.headroom) * memory * GIB
    spare = (limit - found.usage.total) / GIB
    room = f"{limit / GIB:.1f} GiB ({memory:.4g} GiB less {config.headroom:.0%} headroom)"
    if spare >= 0:
        return f"fits: {found.usage.total / GIB:.1f} of {room}; {spare:.1f} GiB are free"
    verdict = f"does not fit: {found.usage.total / GIB:.1f} of {room}; {-spare:.1f} GiB too much"
    better = remedy(drawn, config, config.devices, limit, capability=_capability(config))
    if better is None:
        return f"{verdict}\nno layout of {config.devices} such devices makes it fit"
    return f"{verdict}\nfits with {_options(better.changes)}: {better.estimate.usage.total / GIB:.1f} GiB"


def _measured_speed(measured: Measurement, config: PlannedRun) -> str:
    """Describe the speed, and the duration of the run at it."""
    images = _count_images(config) * config.epochs
    kind = "GPU" if config.device != "cpu" and has_gpu() else "CPU"
    return (
        f"measured: {measured.images_per_second:.4g} images/s on this {kind}, without reading images and validation; "
        f"the run takes {_time(images / measured.images_per_second, 1)} at this speed"
    )


def _measured_memory(measured: Measurement, planned: int) -> str:
    text = f"measured: {measured.allocated / MIB:.1f} MiB at the allocator's peak"
    if measured.resident is not None:
        text += f", {measured.resident / MIB:.1f} MiB more resident in the process than before the network was built"
    return f"{text}; planned: {planned / MIB:.1f} MiB"


def _options(changes: Changes) -> str:
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in changes.items())


def _table(rows: list[Row]) -> str:
    left, middle = (max(len(row[column]) for row in rows if row[1]) for column in (0, 1))
    lines = []
    for label, value, note in rows:
        if not value:
            lines += ["", f"{label}{', ' if note else ''}{note}"]
        else:
            lines.append(f"  {label:<{left}}  {value:>{middle}}  {note}".rstrip())
    return "\n".join(lines) + "\n"
