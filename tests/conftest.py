"""Fixtures of all tests: golden arrays, recorded from the original implementations (tests/golden/README.md)."""

from __future__ import annotations

import gc
import json
import logging
import mmap
import os
import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

# Two single-threaded test processes are faster than one with two threads, and they are reproducible.
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's
import plsc_mae  # noqa: F401  its import adds the other settings; it must precede that of Paddle
from plsc_mae.data import depth

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
ForkServer = runpy.run_path(str(Path(__file__).with_name("fork_server.py")))["ForkServer"]


def pytest_collection_finish() -> None:
    """Exempt what is loaded by now from garbage collection, which takes 0.2 s each time otherwise."""
    gc.collect()
    gc.freeze()


class Golden:
    """Golden file: arrays by name, groups of arrays by prefix, and its metadata."""

    def __init__(self, path: Path) -> None:
        self._arrays = np.load(path, allow_pickle=False)
        self.meta: dict[str, Any] = json.loads(str(self._arrays["meta"]))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays.files

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Return all arrays `prefix/name`, keyed by name."""
        start = prefix + "/"
        return {name[len(start) :]: self._arrays[name] for name in self._arrays.files if name.startswith(start)}


@pytest.fixture
def golden():
    """Return a function that opens a golden file, given its path below tests/golden without the suffix."""
    return lambda name: Golden(GOLDEN / f"{name}.npz")


@pytest.fixture(autouse=True)
def _first_losses_are_logged(monkeypatch) -> None:
    """Log what is lost of images anew in each test; a program logs it once."""
    monkeypatch.setattr(depth, "_logged", mmap.mmap(-1, mmap.PAGESIZE))


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """Return a list that receives the warnings of the package."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "handlers", [handler])
    return lines


@pytest.fixture
def root() -> Path:
    """Return the root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def archives() -> SimpleNamespace:
    """Return the functions of archives.py, which write archives."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("archives.py"))))


@pytest.fixture(scope="session")
def fork_server():
    """Return what starts Python programs as processes that have imported Paddle already; see fork_server.py."""
    with tempfile.TemporaryDirectory() as folder:
        server = ForkServer(Path(folder))
        yield server
        server.close()
