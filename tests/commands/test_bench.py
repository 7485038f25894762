"""The benchmark commands measure what they say and end in numbers a program can read."""

from __future__ import annotations

import json
import re

import pytest

from plsc_mae.cli import main
from plsc_mae.commands import bench
from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import parse
from plsc_mae.methods import load_method

pytestmark = pytest.mark.compat


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    """A matrix product of 2048 x 2048 would take most of the time of these tests."""
    monkeypatch.setattr(bench, "PEAK_SHAPE", (64, 64))


@pytest.mark.parametrize("real", [False, True], ids=["random images", "real images"])
@pytest.mark.parametrize("method", ["tiny", "tiny_cae"])
def test_step_ends_in_json(request, images, capsys, method, real):
    words = [
        "bench",
        "step",
        *request.getfixturevalue(method),
        "--max_train_step",
        "3",
        "--num_workers",
        "0",
        "--batch_size",
        "4",
    ]
    assert main([*words, *(["--data_path", str(images)] if real else [])]) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[-1].startswith('{"name"')  # the comparison script looks for it
    assert set(result) >= {"images_per_second", "seconds_per_step", "batch_size", "processes", "paddle"}
    assert result["batch_size"] == 4
    assert result["processes"] == 1
    assert len(result["seconds_per_step"]) == 3
    assert all(seconds > 0 for seconds in result["seconds_per_step"])
    median = sorted(result["seconds_per_step"])[1]
    assert result["images_per_second"] == pytest.approx(4 / median)
    assert 0 <= result["data_share"] < 1
    assert result["gflops"] > 0
    assert len(result["seconds_preparing"]) == 3
    assert all(
        0 <= part < whole for part, whole in zip(result["seconds_preparing"], result["seconds_per_step"], strict=True)
    )
    numbers = r"network [\d.e-]+ s, \d+ GFLOP/s of \d+ measured in a large matrix product; preparing targets [\d.e-]+ s"
    assert any(re.fullmatch(numbers, line) for line in out)


def test_operations_per_second_are_those_of_the_network(tiny_cae, capsys):
    """Targets are prepared outside of what the operations are counted for."""
    assert main(["bench", "step", *tiny_cae, "--max_train_step", "1", "--batch_size", "4"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = parse(tiny_cae, PRETRAIN, prog="bench step")
    method = load_method("cae")
    macs = method.training_macs(config, method.build_task(config))
    network = result["seconds_per_step"][0] - result["seconds_preparing"][0]
    assert result["seconds_preparing"][0] > 0
    assert result["gflops"] == pytest.approx(2 * macs * 4 / network / 1e9, rel=1e-6)


def test_data_measures_the_loader(tiny, images, capsys):
    words = ["bench", "data", *tiny, "--data_path", str(images), "--max_train_step", "2"]
    for workers, counts in (("--num_workers 0", [0]), ("", [0, 1, 2])):
        assert main([*words, *workers.split()]) == 0
        lines = capsys.readouterr().out.splitlines()
        for line, count in zip(lines, counts, strict=True):
            assert re.fullmatch(rf"pil, {count} workers: [1-9]\d* images/s", line)


def test_data_needs_data(tiny, capsys):
    assert main(["bench", "data", *tiny]) == 2
    assert "--data_path is required" in capsys.readouterr().err


def test_a_family_name_suggests_its_members(capsys):
    assert main(["bench", "steps"]) == 2
    assert "did you mean 'bench step'?" in capsys.readouterr().err
