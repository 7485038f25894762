"""Crashes, hangs and lost time of the checks' process; the processes are small programs of the test."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from plsc_mae.gpu_check import supervisor
from plsc_mae.gpu_check.catalog import CHECKS, PROCESSES
from plsc_mae.gpu_check.results import Result, append, failure, read
from plsc_mae.gpu_check.runner import FUNCTIONS, run_checks
from plsc_mae.gpu_check.supervisor import checks_command, collectives_command, supervise

pytestmark = pytest.mark.compat
# Writes a result for each name, but acts instead on the names of faults.
PROGRAM = """
import json, os, signal, sys, time
for name in sys.argv[2:]:
    if name == "crash":
        print("Fatal: illegal address", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "exit":
        sys.exit(7)
    if name == "hang":
        time.sleep(60)
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps(dict(check=name, outcome="ok", summary="fine", numbers={"x": 1}, seconds=0.5)) + "\\n")
"""


def run(*names: str, limit: float = 20.0, seconds: float = 60.0) -> list[Result]:
    command = lambda path, pending: [sys.executable, "-S", "-c", PROGRAM, str(path), *pending]  # noqa: E731
    return list(supervise(command, dict.fromkeys(names, limit), time.monotonic() + seconds))


def outcomes(results: list[Result]) -> dict[str, str]:
    return {result.check: result.outcome for result in results}


def test_results_come_in_order():
    results = run("a", "b")
    assert outcomes(results) == {"a": "ok", "b": "ok"}
    assert results[0].numbers == {"x": 1}
    assert results[0].seconds == 0.5


def test_a_crash_is_the_result_of_one_check():
    results = run("a", "crash", "b", "exit", "c")
    assert outcomes(results) == {"a": "ok", "crash": "failed", "b": "ok", "exit": "failed", "c": "ok"}
    assert "SIGKILL: Fatal: illegal address" in results[1].summary
    assert "exit code 7: no output" in results[3].summary


@pytest.mark.parametrize(("load", "outcome"), [(1000.0, "slow"), (0.0, "failed")])
def test_a_check_that_is_late_names_its_limit_the_load_and_the_remedy(monkeypatch, load, outcome):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    result, *_ = run("hang", limit=0.2)
    assert result.outcome == outcome
    assert result.is_bad == (outcome == "failed")
    assert all(words in result.summary for words in ("the 0 s", f"load of {load}", "--gpu_minutes"))


def test_a_hang_is_the_result_of_one_check(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    started = time.monotonic()
    results = run("a", "hang", "b", limit=4)  # seconds, more than a busy machine needs to start a process
    assert outcomes(results) == {"a": "ok", "hang": "failed", "b": "ok"}
    assert "not finished" in results[1].summary
    assert time.monotonic() - started < 50


def test_checks_without_time_are_skipped():
    assert outcomes(run("a", "b", seconds=supervisor.LEAST - 1)) == {"a": "skipped", "b": "skipped"}


def test_a_deadline_ends_the_running_check(monkeypatch):
    monkeypatch.setattr(supervisor, "LEAST", 0.2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert outcomes(run("hang", "a", seconds=0.4)) == {"hang": "failed", "a": "skipped"}


def test_command_lines(tmp_path):
    path = tmp_path / "r.jsonl"
    assert checks_command(gpu=True)(path, ["copies"])[1:] == ["-m", "plsc_mae.gpu_check", str(path), "gpu", "copies"]
    words = collectives_command(8)(path, ["collectives"])
    assert words[3:6] == ["launch", "--nproc_per_node", "8"]
    assert words[-4:] == ["doctor", "--gpu", "--report", str(path)]


@pytest.fixture
def faked_checks(monkeypatch):
    def fake(**results: Result | Exception) -> None:
        def check(result):
            def run(gpu: bool) -> Result:
                if isinstance(result, Exception):
                    raise result
                return result

            return run

        for name, result in results.items():
            monkeypatch.setitem(FUNCTIONS, name, check(result))

    return fake


def test_every_check_has_a_function_and_a_process():
    assert list(FUNCTIONS) == list(CHECKS) == [name for names in PROCESSES for name in names]


def test_an_exception_is_the_result_of_one_check(faked_checks):
    faked_checks(copies=ValueError("bad"), speed=Result("speed", "ok", "fast"))
    results = list(run_checks(["copies", "speed"], gpu=False))
    assert outcomes(results) == {"copies": "failed", "speed": "ok"}
    assert results[0].summary == "ValueError: bad"


def test_without_kernels_nothing_else_computes(faked_checks):
    faked_checks(kernels=Result("kernels", "failed", "none"), copies=AssertionError("ran"))
    assert outcomes(run_checks(["kernels", "copies"], gpu=False)) == {"kernels": "failed", "copies": "skipped"}


def test_the_message_of_paddles_errors_comes_after_its_call_stack():
    text = "C++ Traceback:\n0 paddle::f()\n\n------\nError Message Summary:\n------\nExternalError: CUDA error(700)."
    assert failure("speed", RuntimeError(text)).summary == "RuntimeError: ExternalError: CUDA error(700)."


def test_the_file_of_results_may_lack_its_end(tmp_path):
    path = tmp_path / "r.jsonl"
    assert read(path) == []
    append(path, Result("a", "ok", "fine", {"x": 1.5}, 2.0))
    with path.open("a") as file:
        file.write(json.dumps({"check": "b"})[:-3])
    assert read(path) == [Result("a", "ok", "fine", {"x": 1.5}, 2.0)]
