"""What is built from the sources: a complete sdist, a wheel with the recipes, and the steps of the Docker image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # builds in isolation, so pip downloads setuptools, and one test Paddle


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Names of the files in version control."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def source(tracked, tmp_path_factory) -> Path:
    """A clean copy of the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


def test_the_sdist_has_every_file_and_builds_the_wheel(source, tracked, tmp_path):
    program = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked) <= names
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, sdist]
    subprocess.run(pip, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in tracked if name.startswith("plsc_mae/")}
    assert package | {f"plsc_mae/{name}" for name in tracked if name.startswith("configs/")} <= inside
    assert "plsc_mae/py.typed" in inside


def test_the_steps_of_the_cpu_image_work_in_an_empty_environment(source, tmp_path):
    """COPY and RUN of docker/cpu.Dockerfile, with a virtual environment in place of the image."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    build = tmp_path / "src"
    build.mkdir()
    environ = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environ |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    steps = re.findall(r"^(FROM|COPY|RUN|WORKDIR|ENTRYPOINT) (.*)", (ROOT / "docker/cpu.Dockerfile").read_text(), re.M)
    for keyword, words in steps:
        if keyword == "COPY":
            *sources, target = words.split()
            for name in sources:
                if (source / name).is_dir():
                    shutil.copytree(source / name, build / target)
                else:
                    shutil.copy2(source / name, build / target)
        elif keyword == "RUN":
            subprocess.run(["sh", "-ec", words], cwd=build, env=environ, check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in ("--version", "configs demo", "demo-data pictures --train_per_class 1 --val_per_class 1"):
        subprocess.run(["plsc-mae", *command.split()], cwd=empty, env=environ, check=True)
    run = "pretrain --config demo/mae --data_path pictures --output_dir run --max_train_step 1 --batch_size 2"
    subprocess.run(["plsc-mae", *run.split()], cwd=empty, env=environ, check=True)
    assert (empty / "run/train.jsonl").exists()
