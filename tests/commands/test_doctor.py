"""The doctor's report about a machine, and its exit code."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae import runtime
from plsc_mae.cli import main
from plsc_mae.commands import doctor_gpu, doctor_machine

pytestmark = pytest.mark.compat


@pytest.fixture
def seen(monkeypatch, capsys):
    """Run the doctor on a machine without the traps of this one, under given environment variables."""

    def run(*flags: str, code: int = 0, **environ: str) -> str:
        for name in (*doctor_machine.LAUNCH_TRAPS, "PADDLE_TRAINER_ID", "PADDLE_MASTER"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert main(["doctor", *flags]) == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def packages(monkeypatch):
    """Pretend that these are the installed packages."""

    def pretend(**versions: str) -> None:
        named = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor_machine, "version", lambda package: named.get(package, ""))

    return pretend


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(doctor_gpu, "read_driver", lambda: None)


def test_it_shows_versions_cores_and_settings(seen):
    out = seen()
    assert f"Python {platform.python_version()}" in out
    assert paddle.__version__ in out
    assert f"devices: {runtime.available_cores()} CPU cores" in out
    assert f"MKL_NUM_THREADS={os.environ['MKL_NUM_THREADS']}" in out
    assert runtime.SWITCH in out


def test_a_sound_machine_has_no_problems(seen, packages, no_driver):
    packages(paddlepaddle="3.3.1", numpy="2.4.0")
    assert seen().splitlines()[-1] == "no problems found"


@pytest.mark.parametrize("name", doctor_machine.LAUNCH_TRAPS)
def test_variables_that_stop_the_launcher(seen, name):
    assert f"? {name} is set; " in seen(**{name: "0"})


def test_variables_of_the_launcher_itself_are_shown_and_no_traps(seen):
    out = seen(PADDLE_TRAINER_ID="1", PADDLE_TRAINER_ENDPOINTS="10.0.0.1:70", PADDLE_MASTER="node:70")
    assert "PADDLE_MASTER=node:70 PADDLE_TRAINER_ID=1" in out
    assert "is set;" not in out


def test_a_master_must_be_an_address(seen):
    assert "PADDLE_MASTER names node-0.mae" in seen(PADDLE_MASTER="node-0.mae:29761")
    assert "PADDLE_MASTER names" not in seen(PADDLE_MASTER="10.0.0.1:29761")


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"paddlepaddle": "3.3.1", "paddlepaddle_gpu": "2.6.2"}, "overwrite each other: keep one"),
        ({"paddlepaddle": "2.6.2", "numpy": "2.4.0"}, "Paddle 2.6.2 needs numpy<2, found 2.4.0"),
        ({"numpy": "2.4.0"}, "Paddle is not installed"),
    ],
)
def test_incompatible_packages_are_errors(seen, packages, versions, told):
    packages(**versions)
    last = seen(code=1).splitlines()[-1]
    assert last.startswith("! ")
    assert told in last


def test_a_paddle_that_cannot_be_imported_is_an_error(seen, monkeypatch):
    monkeypatch.setitem(sys.modules, "paddle", None)
    assert "! Paddle cannot be imported: " in seen("--distributed", code=1)


def test_optional_packages_that_cannot_be_imported(seen, monkeypatch):
    """A protobuf that visualdl was not made for raises a TypeError; OpenCV lacks libGL. No run ends for them."""

    def refuse(name: str) -> None:
        if name == "visualdl":
            raise TypeError("Descriptors cannot be\ncreated directly")
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor_machine.importlib, "import_module", refuse)
    found = list(doctor_machine.examine_optional_modules())
    assert [finding.stops for finding in found] == [False, False]
    assert "cv2 is installed but cannot be imported (libGL.so.1" in found[0].text
    assert "visualdl is installed but cannot be imported (Descriptors cannot be created directly)" in found[1].text


def test_limits_of_the_system(monkeypatch):
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda *_: SimpleNamespace(free=2**26))
    monkeypatch.setattr(doctor_machine.resource, "getrlimit", lambda *_: (256, 256))
    monkeypatch.setattr(doctor_machine.os.path, "isdir", lambda *_: True)
    assert [found.text.rpartition(": ")[2] for found in doctor_machine.examine_limits(gpus=8)] == [
        "ulimit -n 4096",
        "docker run --shm-size=2g",
    ]
    assert len(list(doctor_machine.examine_limits(gpus=1))) == 1  # only NCCL needs /dev/shm


def test_an_output_folder_that_can_be_written(seen, tmp_path, packages, no_driver):
    packages(paddlepaddle="3.3.1", numpy="2.4.0")
    out = seen("--output_dir", str(tmp_path / "not" / "yet"))
    assert "cannot write" not in out
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_an_error(seen, tmp_path, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    out = seen("--output_dir", str(tmp_path), code=1)
    assert f"! --output_dir {tmp_path}: cannot write to {tmp_path}: Read-only file system" in out


def test_an_output_folder_in_one_that_may_not_be_entered(tmp_path, monkeypatch):
    real = os.stat

    def stat(path: object, **options: object) -> os.stat_result:
        if str(path).startswith(str(tmp_path / "closed" / "")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "stat", stat)
    assert list(doctor_machine.examine_output(f"{tmp_path}/closed/out")) == []  # root may write there


def test_little_room_for_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda *_: SimpleNamespace(free=10**9))
    (found,) = doctor_machine.examine_output(str(tmp_path))
    assert "1.0 GB are free" in found.text
    assert not found.stops


def test_distributed_without_a_launcher_is_an_error(seen):
    assert "! --distributed checks the processes of a launch" in seen("--distributed", code=1)


def test_options_of_the_run(seen, tmp_path, packages, no_driver, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / name / "0.png")
    data = f"--data_path {tmp_path} --in_chans 1 --pixel_range"
    assert "no problems found" in seen(*f"{data} auto".split())
    assert "? sampled values from 4000 to 4000 are beyond the pixel range 0 to 2000" in seen(*f"{data} 0 2000".split())
    assert "! input_size 224 is not a multiple of patch_size 15" in seen("--patch_size", "15", code=1)
    assert "patches: 2 rows and 4 columns" in seen("--patch_size", "8", "--input_size", "16", "32")
    for line, told in (("--pixel_range auto", "--pixel_range has no effect without"), (f"{data} 2 1", "two numbers")):
        assert main(["doctor", *line.split()]) == 2
        assert told in capsys.readouterr().err


def test_data_come_before_a_machine_without_problems(seen, tmp_path, packages, no_driver, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / name / "0.png")
    broken = [doctor_machine.warning("of the machine")]
    monkeypatch.setattr(doctor_machine, "examine_limits", lambda *_: broken)
    lines = seen(*f"--data_path {tmp_path} --in_chans 1 --pixel_range 0 2000".split()).splitlines()
    assert str(tmp_path) in lines[0]
    assert not any(line.startswith(("Python", "devices", "host")) for line in lines)
    findings = [line for line in lines if line.startswith("? ")]
    assert len(findings) > 1
    assert lines[-1] == findings[-1] == "? of the machine"


def test_data_are_part_of_it(seen, tmp_path):
    assert f"! --data_path {tmp_path}/none does not exist" in seen("--data_path", str(tmp_path / "none"), code=1)
