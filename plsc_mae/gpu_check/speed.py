"""Speed of the published runs on this GPU, with their options, compared with the published speeds."""

from __future__ import annotations

import time
from typing import NamedTuple

import paddle

from plsc_mae.gpu_check.results import Number, Result, judged
from plsc_mae.gpu_check.runs import PublishedRun, prepare, published_runs, run_config
from plsc_mae.parallel.world import World
from plsc_mae.train.log.run_logger import peak_memory_gib

WARMUP, SECONDS = 3, {True: 8.0, False: 0.1}
FEWEST, MOST = 3, 50  # timed updates


class Speed(NamedTuple):
    """Speed of a run: images per second, and the peak memory in GiB, see `peak_memory_gib`."""

    images_per_second: float
    memory_gib: float


def check_speed(gpu: bool) -> Result:
    """Measure images per second and peak memory of the published runs on random images, without loading from files.

    The outcome is "differs" if a run is slower than published on the model of GPU for which its speed is published.
    """
    numbers: dict[str, Number] = {}
    slower, parts, world = False, [], World("gpu" if gpu else "cpu")
    device = paddle.device.cuda.get_device_name() if gpu else "CPU"
    for run in published_runs():
        found, published = measure(run, world, gpu=gpu), run.speed
        ratio = found.images_per_second / published.images_per_second
        numbers |= {
            f"{run.name} images/s": found.images_per_second,
            f"{run.name} peak memory GiB": found.memory_gib,
        }
        if gpu:
            slower |= published.gpu in device and ratio < 1
            numbers |= {
                f"{run.name} published images/s on {published.gpu}": published.images_per_second,
                f"{run.name} of the published speed": ratio,
            }
            parts.append(
                f"{run.name} {found.images_per_second:.0f} images/s ({ratio:.2f} of the {published.gpu}'s "
                f"{published.images_per_second:.0f}), {found.memory_gib:.1f} GiB"
            )
    summary = "; ".join(parts) or "small networks on the CPU: the timing works, its figures mean nothing"
    return judged("speed", good=not slower, summary=summary, numbers=numbers)


def measure(run: PublishedRun, world: World, *, gpu: bool) -> Speed:
    """Measure images per second and peak memory of a run that trains on one batch of random images.

    The first updates are not timed. Without `gpu`, a small network is measured on the CPU.
    """
    config = run_config(run, gpu=gpu)
    if gpu:
        _forget_peak_memory()
    prepared = prepare(run, config, world)
    stepper = prepared.stepper(config, world)

    def update() -> None:
        stepper.forward_backward(prepared.task.prepare(dict(prepared.batch)))
        stepper.apply_update()

    for _ in range(WARMUP):
        update()
    world.synchronize()
    started = time.perf_counter()
    update()
    world.synchronize()
    updates = max(FEWEST, min(MOST, int(SECONDS[gpu] / (time.perf_counter() - started))))
    started = time.perf_counter()
    for _ in range(updates):
        update()
    world.synchronize()
    speed = updates * config.batch_size / (time.perf_counter() - started)
    return Speed(speed, peak_memory_gib(gpu))


def _forget_peak_memory() -> None:
    """Reset the peak to the current use; Paddle 2.6 cannot, so its later peaks include those of earlier runs."""
    paddle.device.cuda.empty_cache()
    if hasattr(paddle.device.cuda, "reset_max_memory_allocated"):
        paddle.device.cuda.reset_max_memory_allocated()
