"""The commands of docs/tour.md run in an empty folder, block by block, and write the files that it names."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "docs" / "tour.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = (
    "run/config.yaml",
    "run/report.html",
    "panels/sheet.png",
    "probe/checkpoint-best.pd",
    "tuned/checkpoint-best.pd",
    "for_paddleseg/backbone.pdparams",
    "for_paddleseg/example.py",
)
ONNX = importlib.util.find_spec("paddle2onnx") and importlib.util.find_spec("onnxruntime")


def runnable(block: str) -> bool:
    """Return whether the packages that a block needs are installed."""
    return bool(ONNX) or "--target onnx" not in block


@pytest.fixture
def program(tmp_path) -> dict[str, str]:
    """Return an environment in which `plsc-mae` is this checkout's and `python` is this interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in (("plsc-mae", "-m plsc_mae "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (folder / name).chmod(0o700)
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(TOUR.parents[1])}
    return {**os.environ, **paths}


@pytest.mark.slow  # about 70 CPU-seconds, most of them imports of Paddle
def test_the_tour_runs_from_an_empty_folder(program, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    blocks = [block for block in BLOCK.findall(TOUR.read_text(encoding="utf-8")) if runnable(block[1])]
    assert len(blocks) >= 5  # drawing, pre-training, report, probes, export
    for language, block in blocks:
        command = ["bash", "-ec", block] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=folder, env=program, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    expected = [*FILES, "onnx/model.onnx"] if ONNX else FILES
    assert not [name for name in expected if not (folder / name).is_file()]
    assert list((folder / "run").glob("vdlrecords*"))
