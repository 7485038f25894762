"""The shell scripts run as `sh SCRIPT` and as `bash SCRIPT`, whatever shell `sh` is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").rglob("*.sh")), ROOT / ".ci/run"]
LAUNCHERS = ("pretrain", "finetune", "linprobe", "knn")
DASH = shutil.which("dash") or "sh"


def output(*words: str, cwd: Path, **environ: str) -> str:
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("shell", [[DASH], ["bash"], ["bash", "--posix"]], ids=" ".join)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_run_in_any_shell_and_folder(name, shell, tmp_path):
    words = [*shell, str(ROOT / f"scripts/{name}.sh"), "--data_path", "a b"]
    said = output(*words, cwd=tmp_path, PYTHON="echo", NPROC_PER_NODE="2", LOG_DIR="logs", NNODES="", MASTER="")
    program = f"{ROOT}/plsc_mae/__main__.py knn" if name == "knn" else f"{ROOT}/main_{name}.py"
    assert said == f"-m paddle.distributed.launch --nproc_per_node 2 --log_dir logs {program} --data_path a b"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_sh_parses_a_script_or_hands_it_to_bash(path, tmp_path):
    """A stand-in for bash shows the words that the script hands over."""
    if subprocess.run([DASH, "-n", path], capture_output=True).returncode == 0 and "exec bash" not in path.read_text():
        return
    stub = tmp_path / "bash"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    said = output(DASH, str(path), "--slow", "a b", cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert said == f"{path} --slow a b" if DASH != "sh" else said


@pytest.mark.parametrize("shell", [DASH, "bash"])
def test_an_environment_of_the_user_is_kept(shell, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/mine").touch()
    (tmp_path / "setup.py").touch()
    code = f". {ROOT}/scripts/environment.sh; make_environment .venv ."
    done = subprocess.run([shell, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(".venv exists")
    assert (tmp_path / ".venv/mine").exists()
