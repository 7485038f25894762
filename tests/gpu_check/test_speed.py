"""The comparison of a GPU's speed with published speeds; the measured speeds are faked."""

from __future__ import annotations

import paddle
import pytest

from plsc_mae.config.resolve import load_config
from plsc_mae.config.schema import options
from plsc_mae.gpu_check import speed
from plsc_mae.gpu_check.runs import published_runs, run_config
from plsc_mae.gpu_check.speed import Speed, check_speed, measure
from plsc_mae.parallel.world import World

pytestmark = pytest.mark.compat
A100, OTHER = "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 3090"


@pytest.mark.parametrize(
    ("device", "factor", "outcome"), [(A100, 1.5, "ok"), (A100, 0.9, "differs"), (OTHER, 0.5, "ok")]
)
def test_speeds_beside_the_published_ones(monkeypatch, device, factor, outcome):
    """Only a GPU of the published kind can be too slow."""
    monkeypatch.setattr(speed, "World", lambda _: None)
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: device)
    monkeypatch.setattr(
        speed, "measure", lambda run, *_, **__: Speed(run.speed.images_per_second * factor, memory_gib=12.5)
    )
    result = check_speed(True)
    assert result.outcome == outcome
    for name, published in (("mae", 318), ("cae", 154)):
        assert result.numbers[f"{name} images/s"] == published * factor
        assert result.numbers[f"{name} peak memory GiB"] == 12.5
        assert result.numbers[f"{name} of the published speed"] == pytest.approx(factor)
        assert f"{name} {published * factor:.0f} images/s ({factor:.2f} of the A100's {published})" in result.summary


def test_small_networks_on_the_cpu_are_compared_with_nothing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *_, **__: Speed(1e-6, 0.1))
    result = check_speed(False)
    assert result.outcome == "ok"
    assert not [name for name in result.numbers if "published" in name]
    assert "mean nothing" in result.summary


def test_measurement_of_updates():
    found = measure(next(published_runs()), World("cpu"), gpu=False)
    assert found.images_per_second > 0
    assert found.memory_gib > 0


def test_published_settings_are_those_of_the_recipes():
    """On a GPU only the tokenizer's weights differ, which need a file."""
    names = []
    for run in published_runs():
        ours, recipe = run_config(run, gpu=True), load_config(run.speed.recipe)
        differing = {
            item.name for item in options(type(recipe)) if getattr(recipe, item.name) != getattr(ours, item.name)
        }
        assert differing - {"discrete_vae_type"} == {"device"}
        assert type(ours) is type(recipe)
        names.append(run.name)
    assert names == ["mae", "cae"]
