"""The programs and the notebook of examples/ run in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 60
# The notebook with fewer pictures and epochs: what it computes, not how well.
SHORTER = {
    "train_per_class=100, val_per_class=20": "train_per_class=12, val_per_class=2",
    '"epochs": 20': '"epochs": 1',
}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


@pytest.mark.long
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_an_example_runs(path, fork_server, tmp_path):
    done = fork_server.run([path], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") >= 1


@pytest.mark.long
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples/tour.ipynb", as_version=4)
    for short in SHORTER:
        assert any(short in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        for whole, short in SHORTER.items():
            cell.source = cell.source.replace(whole, short)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3  # pictures, reconstructions, attention
    assert (tmp_path / "tour/probe/checkpoint-best.pd").exists()
