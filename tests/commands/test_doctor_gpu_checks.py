"""`doctor --gpu` as a user sees it: lines, exit code and report file. The results are faked, but for one slow run."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from plsc_mae.cli import main
from plsc_mae.commands import doctor, doctor_gpu, doctor_gpu_checks
from plsc_mae.gpu_check.results import Result, read

pytestmark = pytest.mark.compat
DRIVER = doctor_gpu.Driver("550.54", (12, 4), ("NVIDIA A100-SXM4-40GB",), 8.0)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the doctor with faked results and GPUs; return its output and its report."""

    def run(*results: Result, gpus: int, code: int) -> tuple[str, dict]:
        for name in ("_examine_installation", "_examine_machine"):
            monkeypatch.setattr(doctor, name, lambda *_: iter(()))
        monkeypatch.setattr(doctor, "_visible_gpus", lambda: gpus)
        monkeypatch.setattr(doctor_gpu, "read_driver", lambda: DRIVER if gpus else None)
        monkeypatch.setattr(doctor_gpu_checks, "run_all", lambda *_: iter(results))
        path = tmp_path / "report.json"
        assert main(["doctor", "--gpu", "--report", str(path)]) == code
        return capsys.readouterr().out, json.loads(path.read_text())

    return run


GOOD = Result("copies", "ok", "all equal", {"wrong": 0}, 1.0)


def test_a_sound_gpu(run):
    out, report = run(GOOD, Result("collectives", "skipped", "one GPU"), gpus=1, code=0)
    assert "  ok       copies (1 s): all equal" in out
    assert "  skipped  collectives" in out
    assert "issue of this project" in out
    assert "NOTHING" not in out
    assert out.splitlines()[-1] == "no problems found"
    assert report["measured_on_gpu"] is True
    assert report["gpus"] == list(DRIVER.gpus)
    assert report["checks"][0]["numbers"] == {"wrong": 0}


@pytest.mark.parametrize("outcome", ["failed", "differs"])
def test_a_bad_check_among_good_ones(run, outcome):
    out, report = run(Result("speed", outcome, "out of memory"), GOOD, gpus=1, code=1)
    assert f"! GPU check 'speed' {outcome}: out of memory" in out
    assert "  ok       copies" in out
    assert [check["outcome"] for check in report["checks"]] == [outcome, "ok"]


def test_a_busy_machine_is_no_error(run):
    out, report = run(Result("collectives", "slow", "not finished"), gpus=1, code=0)
    assert "? GPU check 'collectives' not finished" in out
    assert report["checks"][0]["outcome"] == "slow"


def test_more_minutes_raise_all_limits(monkeypatch):
    seen = {}

    def supervise(command, limits, deadline):
        seen.update(limits, end=deadline - time.monotonic())
        yield from (Result(name, "ok", "") for name in limits)

    monkeypatch.setattr(doctor_gpu_checks, "supervise", supervise)
    list(doctor_gpu_checks.run_all(0, minutes=6))
    assert seen["collectives"] == 2 * doctor_gpu_checks.COLLECTIVES_CHECK.seconds
    assert seen["speed"] == 2 * doctor_gpu_checks.CHECKS["speed"].seconds
    assert seen["end"] == pytest.approx(350, abs=20)


def test_without_a_gpu_nothing_is_measured(run):
    out, report = run(GOOD, gpus=0, code=doctor.NO_GPU)
    assert "NOTHING IS MEASURED ON A GPU" in out
    for name in (*doctor_gpu_checks.CHECKS, "collectives"):
        assert f"with a GPU, {name}: " in out
    assert "issue of this project" not in out
    assert report["measured_on_gpu"] is False


def test_a_broken_check_without_a_gpu(run):
    run(Result("speed", "failed", "broken"), gpus=0, code=1)


def test_a_report_of_an_earlier_run_is_replaced_and_a_foreign_file_is_kept(run, tmp_path, capsys):
    run(GOOD, gpus=1, code=0)
    _, report = run(GOOD, GOOD, gpus=1, code=0)
    assert len(report["checks"]) == 2
    path = tmp_path / "notes.json"
    path.write_text("[]")
    assert main(["doctor", "--gpu", "--report", str(path)]) == 2
    assert f"--report {path}" in capsys.readouterr().err
    assert path.read_text() == "[]"


@pytest.mark.parametrize("words", [["--report", "x.json"], ["--gpu_minutes", "9"]])
def test_options_of_the_checks_need_the_checks(capsys, words):
    assert main(["doctor", *words]) == 2
    assert "--gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "kernels", "expected"),
    [(0, "ok", "2 processes"), (1, "ok", "skipped"), (8, "ok", "8 processes"), (8, "failed", "skipped")],
)
def test_collectives_run_over_all_gpus(monkeypatch, gpus, kernels, expected):
    def supervise(command, limits, _):
        if "collectives" in limits:
            yield Result("collectives", "ok", f"{command} processes")
        else:
            yield from (Result(name, kernels if name == "kernels" else "ok", "") for name in limits)

    monkeypatch.setattr(doctor_gpu_checks, "supervise", supervise)
    monkeypatch.setattr(doctor_gpu_checks, "collectives_command", lambda processes: processes)
    *others, last = doctor_gpu_checks.run_all(gpus)
    assert last.check == "collectives"
    assert expected in (last.summary, last.outcome)
    assert {result.check for result in others} == set(doctor_gpu_checks.CHECKS)
    assert (others[-1].outcome == "skipped") == (kernels == "failed")


@pytest.mark.parametrize(("outcome", "code"), [("ok", 0), ("differs", 1)])
def test_processes_of_a_launch_check_their_collectives(monkeypatch, tmp_path, capsys, outcome, code):
    monkeypatch.setattr(doctor, "_examine_installation", lambda: iter(()))
    monkeypatch.setattr(doctor, "_examine_machine", lambda _: iter(()))
    monkeypatch.setattr(doctor, "_visible_gpus", lambda: 2)
    monkeypatch.setattr(doctor_gpu_checks, "is_launched", lambda: True)
    monkeypatch.setattr(doctor_gpu_checks, "World", lambda _: SimpleNamespace(is_main=True))
    result = Result("collectives", outcome, "15 of 15")
    monkeypatch.setattr(doctor_gpu_checks, "check_collectives", lambda _: result)
    path = tmp_path / "result.jsonl"
    assert main(["doctor", "--gpu", "--report", str(path)]) == code
    assert "collectives: 15 of 15" in capsys.readouterr().out
    assert read(path)[0].outcome == outcome
    assert main(["doctor", "--gpu", "--report", str(tmp_path / "absent" / "result.jsonl")]) == 2
    assert "--report" in capsys.readouterr().err


@pytest.mark.slow
def test_all_checks_test_themselves_on_the_cpu(tmp_path, capfd):
    path = tmp_path / "report.json"
    assert main(["doctor", "--gpu", "--report", str(path)]) in (1, doctor.NO_GPU)  # this machine may have problems
    report = json.loads(path.read_text())
    assert {check["check"]: check["outcome"] for check in report["checks"]} == dict.fromkeys(
        [*doctor_gpu_checks.CHECKS, "collectives"], "ok"
    )
    assert "15 of 15 collectives over 2 processes" in capfd.readouterr().out
