"""Atomic replacement: the old file or the complete new one, and no temporary file is left."""

from __future__ import annotations

import contextlib
import os
import stat

import numpy as np
import pytest

from plsc_mae.files import atomic_replacement
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.weights.write import SUFFIXES, write_file

pytestmark = pytest.mark.compat


def test_the_new_file_replaces_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.bin"
    for content in (b"first", b"second"):
        before = path.read_bytes() if path.exists() else None
        with atomic_replacement(path) as temporary:
            temporary.write_bytes(content)
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_an_error_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"first")
    with contextlib.suppress(KeyError), atomic_replacement(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        for suffix in SUFFIXES:
            write_file(tmp_path / f"weights{suffix}", {"x": np.zeros(2, np.float32)})
        checkpoint_file.save(tmp_path / "checkpoint-0.pd", {"epoch": 0, "step": 0})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert len(modes) == len(SUFFIXES) + 1
