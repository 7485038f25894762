"""The functions behind the checks of one process, and their execution one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import paddle

from plsc_mae.gpu_check import chip, numerics, speed
from plsc_mae.gpu_check.results import Result, failure

# True as the argument computes on the GPU, False tests the check itself on the CPU.
FUNCTIONS: dict[str, Callable[[bool], Result]] = {
    "kernels": chip.check_kernels,
    "copies": chip.check_copies,
    "attention": numerics.check_attention,
    "precision": numerics.check_mixed_precision,
    "speed": speed.check_speed,
    "determinism": numerics.check_determinism,
}


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
            result = FUNCTIONS[name](gpu)
        except Exception as error:  # Paddle's errors have many types, and one check must not end the others
            result = failure(name, error)
        no_kernels = name == "kernels" and result.outcome == "failed"
        yield result._replace(seconds=time.perf_counter() - started)
