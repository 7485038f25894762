"""List files in UTF-8 and in GBK."""

from __future__ import annotations

import logging
import os
import sys

import pytest

from plsc_mae.data.list_file import read_list_file
from plsc_mae.errors import ConfigError

GBK = os.fsdecode("狗.png".encode("gbk"))


@pytest.mark.parametrize(("on_disk", "found"), [("狗.png", "狗.png"), (GBK, GBK), (None, GBK)])
def test_a_list_in_gbk_names_the_files_that_exist(tmp_path, caplog, on_disk, found):
    for name in ("cat.png", on_disk):
        if name:
            (tmp_path / name).touch()
    (tmp_path / "list.txt").write_bytes("cat.png 0\n狗.png 1\n狗.png 0\n".encode("gbk"))
    with caplog.at_level(logging.WARNING, "plsc_mae"):
        paths, labels = read_list_file(tmp_path / "list.txt", "--data_path")
    assert list(paths) == ["cat.png", found, found]
    assert labels.tolist() == [0, 1, 0]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == (on_disk != GBK)
    assert all(part in text for text in warned for part in ("line 2", "0xb9", "GBK", "狗.png", "UTF-8"))


def test_a_missing_package_of_an_archive_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1\0")
    (tmp_path / "list.txt").write_text("a.parquet/0\n")
    with pytest.raises(ConfigError, match="pyarrow"):
        read_list_file(tmp_path / "list.txt", "--data_path")
