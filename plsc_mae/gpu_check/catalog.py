"""The checks that one process runs, in order, with their time limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import paddle

from plsc_mae.gpu_check import chip, numerics, speed
from plsc_mae.gpu_check.results import Result, failure

COLLECTIVES = "collectives"


class Check(NamedTuple):
    """A check of one process.

    Attributes:
        run: the check; True as its argument computes on the GPU, False tests the check itself on the CPU.
        seconds: time limit; that of the first check includes the start of the process.
        purpose: what the check does, for the user.
    """

    run: Callable[[bool], Result]
    seconds: float
    purpose: str


CHECKS = {
    "kernels": Check(chip.check_kernels, 40, "does this wheel of Paddle have kernels for this chip?"),
    "copies": Check(chip.check_copies, 20, "are non-blocking copies from pinned memory equal to their sources?"),
    "attention": Check(numerics.check_attention, 30, "does flash attention equal plain products, gradients too?"),
    "precision": Check(numerics.check_mixed_precision, 40, "are loss and gradient in mixed precision near float32's?"),
    "determinism": Check(numerics.check_determinism, 50, "do equal updates have equal bits, with --deterministic?"),
    "speed": Check(speed.check_speed, 70, "images/s and memory of the published runs in their settings"),
}
PROCESSES = (tuple(name for name in CHECKS if name != "determinism"), ("determinism",))  # checks that share a process
COLLECTIVES_SECONDS = 60.0
COLLECTIVES_PURPOSE = "are the collectives of all data types exact, over all visible GPUs?"


def run_checks(names: Iterable[str], *, gpu: bool) -> Iterator[Result]:
    """Run checks one after the other; an exception is that check's result. Without kernels the rest is skipped."""
    paddle.set_device("gpu" if gpu else "cpu")
    no_kernels = False
    for name in names:
        if no_kernels:
            yield Result(name, "skipped", "there are no kernels for this chip")
            continue
        started = time.perf_counter()
        try:
            result = CHECKS[name].run(gpu)
        except Exception as error:  # Paddle's errors have many types, and one check must not end the others
            result = failure(name, error)
        no_kernels = name == "kernels" and result.outcome == "failed"
        yield result._replace(seconds=time.perf_counter() - started)
