"""Atomic replacement: the old file or the complete new one, and no temporary file is left."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat

import numpy as np
import pytest

from plsc_mae.files import MARK, atomic_replacement, refuse_foreign, result_replacement, write_csv
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.weights.write import SUFFIXES, write_file


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


def test_a_foreign_file_is_not_replaced(tmp_path):
    """Nor a folder, nor the target of a link; empty files and earlier results are."""
    mine = tmp_path / "mine.csv"
    mine.write_bytes(b"name,label\na,1\n")
    link = tmp_path / "link.csv"
    link.symlink_to(mine)
    for path in (mine, link, tmp_path):
        with pytest.raises(FileExistsError), result_replacement(path) as temporary:
            temporary.write_bytes(b"new")
        with pytest.raises(FileExistsError):
            refuse_foreign(path)
    assert mine.read_bytes() == b"name,label\na,1\n"
    mine.write_bytes(b"")
    for content in (f"{MARK} 1".encode(), b"\xff" * 70_000 + f"{MARK} 2".encode()):
        with result_replacement(link) as temporary:
            temporary.write_bytes(content)
        assert mine.read_bytes() == content
    assert link.is_symlink()
    refuse_foreign(mine, (MARK, "2"))
    with pytest.raises(FileExistsError):
        refuse_foreign(mine, (MARK, "3"))
    with pytest.raises(NotADirectoryError):
        refuse_foreign(mine / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "mine.csv"]


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


@pytest.mark.parametrize(("name", "mark"), [("cat", b""), ("猫", b"\xef\xbb\xbf")])
def test_csv_is_marked_for_excel_if_needed(tmp_path, name, mark):
    write_csv(tmp_path / "a.csv", [("class", "images"), (name, 2), ("a, b", "")])
    content = (tmp_path / "a.csv").read_bytes()
    assert content.startswith(mark + b"class,images\r\n")
    assert list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))[1:] == [[name, "2"], ["a, b", ""]]
