"""The programs and the notebook of examples/ run in an empty folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
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


def test_cells_are_cut_and_their_predictions_joined(fork_server, tmp_path):
    program, field = ROOT / "examples/cut_cells.py", np.full((200, 300), 400, np.uint16)
    for center in ((60, 50), (250, 100), (4, 195)):  # the last one is at the edge
        cv2.circle(field, center, 12, 3000, -1)
    cv2.circle(field, (150, 150), 2, 3000, -1)  # too small for a cell
    cv2.imwrite(str(tmp_path / "a.tif"), field)
    (tmp_path / "b.tif").write_bytes(b"damaged")
    (tmp_path / "labels.csv").write_text("file,kind,plate\na.tif,round,1\nb.tif,long,1\n")
    done = fork_server.run([program, tmp_path, tmp_path / "labels.csv", tmp_path / "cells"], cwd=tmp_path)
    assert f"{tmp_path / 'b.tif'} cannot be read, left out\n3 cells in" in done.stdout, done.stdout + done.stderr
    table = (tmp_path / "cells/cells.csv").read_text().splitlines()
    assert table == ["image,class,field,plate", *(f"a.tif_{i}.png,round,a.tif,1" for i in range(3))]
    for i in range(3):
        cell = cv2.imread(str(tmp_path / f"cells/a.tif_{i}.png"), cv2.IMREAD_UNCHANGED)
        assert (cell.shape, cell.dtype, cell[32, 32]) == ((64, 64), np.uint16, 3000)

    rows = (
        "0,1,round,0,0.9",
        "0,2,long,1,0.1",
        "1,1,long,1,0.6",
        "1,2,round,0,0.4",
        "2,1,long,1,0.6",
        "2,2,round,0,0.4",
    )
    predictions = "\n".join(
        ("image,rank,class,index,probability", *(f"cells/a.tif_{row[0]}.png{row[1:]}" for row in rows))
    )
    (tmp_path / "predictions.csv").write_text(predictions)
    done = fork_server.run([program, "--join", tmp_path / "predictions.csv"], cwd=tmp_path)
    assert done.stdout == "a.tif,round\n", done.stdout + done.stderr


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
