"""The GPU checks of `plsc-mae doctor --gpu`: one line per check, and the report file."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from plsc_mae.commands.doctor_findings import Finding, error, warning
from plsc_mae.commands.doctor_gpu import Driver
from plsc_mae.errors import ConfigError
from plsc_mae.files import result_replacement
from plsc_mae.gpu_check.catalog import CHECKS, COLLECTIVES, COLLECTIVES_CHECK, MINUTES, PROCESSES
from plsc_mae.gpu_check.collectives import check_collectives
from plsc_mae.gpu_check.report import as_json, build_report
from plsc_mae.gpu_check.results import Result, append
from plsc_mae.gpu_check.supervisor import checks_command, collectives_command, supervise
from plsc_mae.parallel.world import World

REPORT = "gpu-report.json"
SELF_TEST_PROCESSES = 2
MARGIN = 10.0  # seconds of the limit that are reserved for ending the last process
NO_KERNELS = "the check of kernels did not pass"
NOTHING_MEASURED = "NOTHING IS MEASURED ON A GPU: Paddle sees none, so the checks test themselves on the CPU"
WHERE_TO_SEND = (
    "The names of this user and machine and absolute paths are replaced in it, but the rest of a path behind a space "
    "is not: look through it, then please attach it to an issue of this project: no GPU has been measured yet "
    "(docs/benchmarks/gpu.md)"
)


def examine_by_computing(
    gpus: int, driver: Driver | str | None, report: str, minutes: float
) -> Iterator[str | Finding]:
    """Run all checks, yield a line for each result and, if it is bad or slow, a finding; then write the report.

    Args:
        gpus: number of GPUs that Paddle can use; 0 lets the checks test themselves on the CPU.
        driver: the result of `read_driver`.
        report: path of the report file.
        minutes: limit of all checks together.

    Raises:
        ConfigError: the report cannot be written, or the file exists and is not a report.
    """
    path = Path(report)
    try:
        with result_replacement(path) as temporary:
            results = yield from _print_results(gpus, minutes)
            known = driver if isinstance(driver, Driver) else Driver("", (0, 0), (), 0.0)
            values = build_report(results, gpu=gpus > 0, gpus=known.gpus, driver=known.version)
            temporary.write_text(as_json(values), encoding="utf-8")
    except OSError as failure:
        raise ConfigError(f"--report {report}: cannot write it: {failure.strerror}; choose another file") from None
    yield f"report of the GPU checks: {report}. " + (WHERE_TO_SEND if gpus else NOTHING_MEASURED)


def _print_results(gpus: int, minutes: float) -> Generator[str | Finding, None, list[Result]]:
    """Yield lines about the checks, a line for each result and, if it is bad or slow, a finding; return all results."""
    yield f"GPU checks, at most {minutes:g} minutes:"
    if not gpus:
        yield f"  {NOTHING_MEASURED}"
        checks = {**CHECKS, COLLECTIVES: COLLECTIVES_CHECK}
        yield from (f"  with a GPU, {name}: {check.purpose}" for name, check in checks.items())
    results = []
    for result in run_all(gpus, minutes):
        results.append(result)
        yield f"  {result.outcome:<8} {result.check} ({result.seconds:.0f} s): {result.summary}"
        if result.is_bad:
            yield error(f"GPU check '{result.check}' {result.outcome}: {result.summary}")
        elif result.outcome == "slow":
            yield warning(f"GPU check '{result.check}' {result.summary}")
    return results


def run_all(gpus: int, minutes: float = MINUTES) -> Iterator[Result]:
    """Yield the result of every check: those of a single device first, then that of the collectives over all GPUs.

    Without a GPU, the collectives run in SELF_TEST_PROCESSES processes on the CPU. If the check of kernels does not
    pass, the checks of determinism and of the collectives are skipped. All checks together take at most `minutes`, and
    the limit of each one is proportional to `minutes`.
    """
    deadline, scale = time.monotonic() + 60 * minutes - MARGIN, minutes / MINUTES
    unusable = False
    for names in PROCESSES:
        if unusable:
            yield from (Result(name, "skipped", NO_KERNELS) for name in names)
            continue
        limits = {name: scale * CHECKS[name].seconds for name in names}
        for result in supervise(checks_command(gpu=gpus > 0), limits, deadline):
            unusable |= result.check == "kernels" and (result.is_bad or result.outcome == "slow")
            yield result
    if unusable or gpus == 1:
        yield Result(COLLECTIVES, "skipped", NO_KERNELS if unusable else "there is one GPU; collectives need two")
    else:
        command = collectives_command(gpus or SELF_TEST_PROCESSES)
        yield from supervise(command, {COLLECTIVES: scale * COLLECTIVES_CHECK.seconds}, deadline)


def is_launched() -> bool:
    """Return whether this process is one of several of a launch."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def examine_launched(report: str) -> Iterator[str | Finding]:
    """Check the collectives in all processes of a launch; all of them must iterate to the end.

    Process 0 appends the result to the file `report` as a line of JSON, unless `report` is "".

    Raises:
        ConfigError: the file cannot be written.
    """
    world = World("auto")
    started = time.perf_counter()
    result = check_collectives(world)._replace(seconds=time.perf_counter() - started)
    yield f"  {result.outcome:<8} {result.check}: {result.summary}"
    if result.is_bad:
        yield error(f"GPU check '{result.check}' {result.outcome}: {result.summary}")
    if world.is_main and report:
        try:
            append(Path(report), result)
        except OSError as failure:
            raise ConfigError(f"--report {report}: cannot write it: {failure.strerror}; choose another file") from None
