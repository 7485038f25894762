"""List files in UTF-8 and in GBK."""

from __future__ import annotations

import logging
import os
import sys

import numpy as np
import pytest

from plsc_mae.data.list_file import read_class_names, read_label_names, read_list_file
from plsc_mae.errors import ConfigError, DataError

GBK = os.fsdecode("狗.png".encode("gbk"))


def test_a_label_of_thousands_of_digits_is_refused(tmp_path):
    (tmp_path / "cat.png").touch()
    (tmp_path / "list.txt").write_text(f"cat.png 0\ncat.png {'9' * 5000}\n")
    with pytest.raises(DataError, match="line 2"):
        read_list_file(tmp_path / "list.txt", "--data_path")


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
def test_names_in_gbk_are_read_with_a_warning(tmp_path, caplog, encoding):
    (tmp_path / "classes.txt").write_bytes("cat\r\n狗 \r\n".encode(encoding))
    assert read_class_names(str(tmp_path / "classes.txt")) == ("cat", "狗")
    assert ("'狗'" in caplog.text) == (encoding == "gbk")


def test_other_bytes_are_escaped(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n\\xb9\\xb7\n")
    assert read_class_names(str(tmp_path / "classes.txt")) == (r"caf\xe9", r"\x5cxb9\x5cxb7")


@pytest.mark.parametrize(
    ("names", "labels", "mentioned"),
    [
        ("cat\ndog\n", (0, 2), ("2 class names", "labels from 0 to 2", "rename it")),
        ("cat\ndog\n", (1, 2), ("2 class names", "labels from 1 to 2", "subtract 1")),
        ("cat\n\ndog\n", (0, 1), ("line 2 is empty", "class 1")),
        ("cat\ndog\ncat\n", (0, 1), ("'cat' in lines 1 and 3", "correct it")),
        ("", (0, 1), ("0 class names",)),
    ],
)
def test_names_that_do_not_fit_the_labels_are_refused(tmp_path, names, labels, mentioned):
    file = tmp_path / "classes.txt"
    file.write_text(names)
    with pytest.raises(DataError) as error:
        read_label_names(file, np.array(labels), "train.txt")
    assert all(part in str(error.value) for part in (*mentioned, str(file)))


def test_a_missing_package_of_an_archive_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1\0")
    (tmp_path / "list.txt").write_text("a.parquet/0\n")
    with pytest.raises(ConfigError, match="pyarrow"):
        read_list_file(tmp_path / "list.txt", "--data_path")
