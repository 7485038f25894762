"""Atomic replacement: the old file or the complete new one, and no temporary file is left."""

from __future__ import annotations

import contextlib

import pytest

from plsc_mae.files import atomic_replacement

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
