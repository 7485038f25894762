"""Files of class names."""

from __future__ import annotations

import pytest

from plsc_mae.loading.class_names import read_class_names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
def test_names_in_gbk_are_read_with_a_warning(tmp_path, caplog, encoding):
    (tmp_path / "classes.txt").write_bytes("cat\r\n狗 \r\n".encode(encoding))
    assert read_class_names(str(tmp_path / "classes.txt")) == ("cat", "狗")
    assert ("'狗'" in caplog.text) == (encoding == "gbk")


def test_other_bytes_are_escaped(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n\\xb9\\xb7\n")
    assert read_class_names(str(tmp_path / "classes.txt")) == (r"caf\xe9", r"\x5cxb9\x5cxb7")
