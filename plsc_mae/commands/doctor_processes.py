"""The doctor's checks of launched processes: their versions and speeds, and the results and speed of all-reduce."""

from __future__ import annotations

import math
import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from paddle import Tensor

import plsc_mae
from plsc_mae.commands.doctor_findings import Finding, error, warning
from plsc_mae.parallel.world import World

SIZES = (2**12, 2**20, 2**24, 2**26)  # bytes
_TEXT_BYTES = 256
_SECONDS_PER_SIZE = 0.5
_MATRIX = 512
_SLOW = 1.5

LAUNCH = (
    "--distributed checks the processes of a launch, and this process was not launched: "
    "plsc-mae launch --nproc_per_node 2 doctor --distributed"
)


def examine_processes(world: World) -> Iterator[str | Finding]:
    """Check versions, speed and all-reduce of all processes; all processes must iterate to the end."""
    if world.size == 1:
        yield error(LAUNCH)
        return
    yield from _introduce(world)
    yield from _check_sums(world)
    for size in SIZES:
        seconds = _time_sum(world, size)
        yield f"  all-reduce of {_size_text(size)}: {seconds * 1e3:.3g} ms, {size / seconds / 1e6:.0f} MB/s"
    world.barrier()


def _introduce(world: World) -> Iterator[str | Finding]:
    versions = f"Paddle {paddle.__version__}, numpy {np.__version__}, plsc_mae {plsc_mae.__version__}"
    system = f"Python {platform.python_version()}, {versions}"
    hosts = _gather_text(world, f"{socket.gethostname()} process {os.getpid()}")
    systems = _gather_text(world, system)
    own = [0.0] * world.size
    own[world.rank] = _time_product()
    world.barrier()
    seconds = world.sum(paddle.to_tensor(own, dtype="float64")).tolist()
    for rank, (host, time_taken) in enumerate(zip(hosts, seconds, strict=True)):
        yield f"  rank {rank}: {host}, {2 * _MATRIX**3 / time_taken / 1e9:.0f} GFLOP/s"
    slowest = int(np.argmax(seconds))
    if seconds[slowest] > _SLOW * float(np.median(seconds)):
        yield warning(
            f"rank {slowest} on {hosts[slowest]} is the slowest, {seconds[slowest] / np.median(seconds):.1f} times as "
            "slow as the median, and the others wait for it: check for other programs on that machine"
        )
    others = [rank for rank, found in enumerate(systems) if found != systems[0]]
    if others:
        yield error(
            f"rank {others[0]} on {hosts[others[0]]} has {systems[others[0]]}, rank 0 has {systems[0]}: install the "
            "same versions everywhere"
        )


def _check_sums(world: World) -> Iterator[str | Finding]:
    """All-reduce numbers that depend on rank and position, and compare the sums with their exact values.

    All processes must iterate to the end. float16 is omitted, because gloo sums it wrongly.
    """
    total = world.size * (world.size + 1) // 2
    places = np.arange(1000)
    cases = {
        "float32": places.astype(np.float32) / 8,
        "int64": places.astype(np.int64) + 2**40,  # beyond the integers that float32 holds exactly
    }
    for dtype, pattern in cases.items():
        summed = world.sum(paddle.to_tensor(pattern * (world.rank + 1), dtype=dtype)).numpy()
        wrong = int((summed != (pattern * total).astype(pattern.dtype)).sum())
        wrong = int(world.sum(paddle.to_tensor([wrong], dtype="int64")).item())
        if wrong:
            yield error(
                f"sums of {dtype} over the processes are wrong ({wrong} of {pattern.size * world.size} numbers): "
                "training would be wrong without an error; check that all processes have the same wheel, then "
                "check NCCL and the network"
            )
        else:
            yield f"  sums of {dtype} over {world.size} processes are exact"


def _time_sum(world: World, size: int) -> float:
    """Return the mean seconds of an all-reduce of `size` bytes, the same in all processes; all processes must call."""
    values = paddle.zeros([size // 4], dtype="float32")
    _finish(world.sum(values))
    started = time.perf_counter()
    _finish(world.sum(values))
    longest = world.sum(paddle.to_tensor([time.perf_counter() - started], dtype="float64")).item() / world.size
    repeats = max(1, min(100, math.ceil(_SECONDS_PER_SIZE / longest)))
    world.barrier()
    started = time.perf_counter()
    for _ in range(repeats):
        values = world.sum(values)
    _finish(values)
    mean = paddle.to_tensor([(time.perf_counter() - started) / repeats], dtype="float64")
    return float(world.sum(mean).item()) / world.size


def _time_product() -> float:
    a, b = paddle.ones([_MATRIX, _MATRIX]), paddle.ones([_MATRIX, _MATRIX])
    times = []
    for _ in range(6):
        started = time.perf_counter()
        _finish(paddle.matmul(a, b))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _gather_text(world: World, text: str) -> Sequence[str]:
    """Return the text of every process, cut after _TEXT_BYTES bytes, by rank; all processes must call.

    The texts are gathered with the all-reduce that is being tested.
    """
    letters = np.zeros([world.size, _TEXT_BYTES], np.int64)
    encoded = text.encode()[:_TEXT_BYTES]
    letters[world.rank, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = world.sum(paddle.to_tensor(letters)).numpy().astype(np.uint8)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def _finish(values: Tensor) -> None:
    """Wait until the device has computed `values`."""
    float(values.flatten()[0].item())


def _size_text(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"
