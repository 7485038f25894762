"""Shared by the tests of reading weights."""

from __future__ import annotations

import pytest


@pytest.fixture
def checkpoints(root):
    return root / "tests" / "golden" / "mae" / "checkpoints"


@pytest.fixture
def saved(tmp_path):
    """Write bytes to a file without a telling suffix."""

    def write(data: bytes):
        path = tmp_path / "weights"
        path.write_bytes(data)
        return path

    return write
