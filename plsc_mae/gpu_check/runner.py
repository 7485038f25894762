"""Functions of the checks except that of the collectives, and the loop that runs the checks of one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import paddle

from plsc_mae.gpu_check import chip, numerics, speed
from plsc_mae.gpu_check.results import Result, failure

# The argument is True to compute on the GPU, False to test the check itself on the CPU.
FUNCTIONS: dict[str, Callable[[bool], Result]] = {
    "kernels": chip.check_kernels,
    "copies": chip.check_copies,
    "attention": numerics.check_attention,
    "precision": numerics.check_mixed_precision,
    "speed": speed.check_speed,
    "determinism": numerics.check_determinism,
}


def run_checks(names: Iterable[str], *, gpu: bool) -> Iterator[Result]:
    """Run checks one after the other and yield their results.

    A check that raises an exception has failed, and the next one runs; after the check "kernels" has failed, the
    remaining ones are skipped.
    """
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
