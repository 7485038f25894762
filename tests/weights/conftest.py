"""Fixtures of the tests that read weights."""

from __future__ import annotations

import pytest


@pytest.fixture
def checkpoints(root):
    return root / "tests" / "golden" / "mae" / "checkpoints"


@pytest.fixture
def saved(tmp_path):
    """Write bytes to a file without a suffix, so that only the content determines the format."""

    def write(data: bytes):
        path = tmp_path / "weights"
        path.write_bytes(data)
        return path

    return write
