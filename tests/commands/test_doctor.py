"""What the doctor sees and what it warns of."""

from __future__ import annotations

import os
import platform
from types import SimpleNamespace

import paddle
import pytest

from plsc_mae import runtime
from plsc_mae.cli import main
from plsc_mae.commands import doctor

pytestmark = pytest.mark.compat


@pytest.fixture
def seen(monkeypatch, capsys):
    """Run the doctor on a machine without the traps of this one, under given environment variables."""

    def run(**environ: str) -> str:
        for name in doctor.LAUNCH_TRAPS:
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert main(["doctor"]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def packages(monkeypatch):
    """Pretend that these are the installed packages."""

    def pretend(**versions: str) -> None:
        named = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor, "_version", lambda package: named.get(package, ""))

    return pretend


def test_it_tells_versions_cores_and_settings(seen):
    out = seen()
    assert f"Python {platform.python_version()}" in out
    assert paddle.__version__ in out
    assert f"devices: {runtime.available_cores()} CPU cores" in out
    assert f"MKL_NUM_THREADS={os.environ['MKL_NUM_THREADS']}" in out
    assert runtime.SWITCH in out


def test_a_sound_machine_has_nothing_amiss(seen, packages, monkeypatch):
    packages(paddlepaddle="3.3.1", numpy="2.4.0")
    monkeypatch.setattr(doctor.shutil, "which", lambda *_: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda *_: SimpleNamespace(free=2**34))
    assert seen().splitlines()[-1] == "nothing amiss"


@pytest.mark.parametrize("name", doctor.LAUNCH_TRAPS)
def test_variables_that_stop_the_launcher(seen, name):
    assert f"! {name} is set; " in seen(**{name: "0"})


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"paddlepaddle": "3.3.1", "paddlepaddle_gpu": "2.6.2"}, "overwrite each other: keep one"),
        ({"paddlepaddle": "2.6.2", "numpy": "2.4.0"}, "Paddle 2.6.2 needs numpy<2, found 2.4.0"),
    ],
)
def test_packages_at_odds(seen, packages, versions, told):
    packages(**versions)
    assert told in seen()


def test_a_cpu_wheel_beside_a_gpu(seen, packages, monkeypatch):
    packages(paddlepaddle="3.3.1", numpy="2.4.0")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "install a GPU wheel" in seen()


def test_little_shared_memory(seen, monkeypatch):
    if not os.path.isdir(doctor.SHARED_MEMORY):
        pytest.skip("this system has none")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda *_: SimpleNamespace(free=2**26))
    assert "docker run --shm-size=8g" in seen()
