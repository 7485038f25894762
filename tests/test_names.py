"""Names of any bytes are printed and written in one way, and can be restored."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest

import plsc_mae
from plsc_mae.cli import main
from plsc_mae.names import as_json, escape_controls, escape_name, escape_streams, gbk_reading, restore_name

GBK = os.fsdecode("狗".encode("gbk"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train/n01440764/a b.jpg", "train/n01440764/a b.jpg"),
        ("狗/é.png", "狗/é.png"),
        (GBK, r"\xb9\xb7"),
        (os.fsdecode("ñ".encode("latin-1")) + "1", r"\xf11"),
        (os.fsdecode("猫".encode("shift-jis")), r"\x94L"),
        ("a\nb\x1b[31m\x7f", r"a\x0ab\x1b[31m\x7f"),
        ("\x85\u2028", r"\xc2\x85\xe2\x80\xa8"),
        (r"dir\file", r"dir\file"),
        (r"\xb9 and \xB9", r"\x5cxb9 and \xB9"),
        ("\\" + GBK, r"\\xb9\xb7"),
        ("\\x4" + GBK, r"\x4\xb9\xb7"),
    ],
)
def test_a_name_is_shown_and_restored(name, shown):
    assert escape_name(name) == shown
    assert restore_name(shown) == name
    assert os.fsencode(restore_name(shown)) == os.fsencode(name)
    assert json.loads(json.dumps(shown, ensure_ascii=False).encode("utf-8").decode()) == shown


def test_a_surrogate_of_no_file_is_escaped_too():
    """As a JSON file may have it."""
    assert escape_name("a\ud800") == r"a\xed\xa0\x80"


def test_json_has_names_as_they_are():
    """It stays on one line, is UTF-8, and returns the same names, also those that no UTF-8 has."""
    content = {"狗": ["é\u2028\x85\n", GBK, "\U0001f408"]}
    text = as_json(content)
    assert "狗" in text
    assert "\U0001f408" in text
    assert len(text.splitlines()) == 1
    assert json.loads(text.encode("utf-8")) == content
    assert as_json(content, indent=1).count("\n") == 6


def test_json_for_people_has_no_escapes():
    """Elsewhere json.dumps writes records between processes, footers, numbers, or files of a fixed format."""
    package = Path(plsc_mae.__file__).parent
    users = {
        str(file.relative_to(package)) for file in package.rglob("*.py") if "json.dumps(" in file.read_text("utf-8")
    }
    others = {
        *(
            "analysis/feature_files.py",
            "commands/bench.py",
            "commands/convert.py",
            "data/demo.py",
            "data/kept_lists.py",
        ),
        *("export/targets/huggingface.py", "gpu_check/report.py", "gpu_check/results.py", "parallel/peer.py"),
        *("parity/references/exchange.py", "parity/report.py", "train/checkpoint/file.py", "weights/fetch.py"),
    }
    assert users == others | {"names.py", "console.py"}


@pytest.mark.parametrize(
    ("name", "reading"),
    [(GBK, "狗"), (r"\xb9\xb7 1", "狗 1"), ("狗", ""), ("cat", ""), (r"\xb9", ""), ("a\x1b", "")],
)
def test_names_in_gbk_can_be_read(name, reading):
    assert gbk_reading(name) == reading


def test_messages_keep_their_lines():
    assert escape_controls("one\n\ttwo\r\x1b[2J") == "one\n\ttwo\\x0d\\x1b[2J"
    assert escape_controls("one\n", one_line=True) == r"one\x0a"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "狗 \\xb9\\xb7"), ("ascii", r"\xe7\x8b\x97 \xb9\xb7"), ("gbk", "狗 \\xb9\\xb7"), ("latin-1", None)],
)
def test_streams_write_what_they_cannot_encode(monkeypatch, encoding, shown):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, errors="strict"))
    escape_streams()
    for stream in (sys.stdout, sys.stderr):
        print("狗", GBK, end="", file=stream)
        stream.flush()
        written = stream.buffer.getvalue().decode(encoding)
        assert written == (shown or r"\xe7\x8b\x97 \xb9\xb7")
        assert restore_name(written) == f"狗 {GBK}"


def test_other_streams_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    escape_streams()


def test_messages_of_a_command_are_one_printable_line(tmp_path, monkeypatch):
    """An error names a folder of GBK bytes with a line end and a color in its name, on a terminal of ASCII."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii"))
    bad = str(tmp_path / f"{GBK}\n\x1b[31m")
    assert main(["doctor", "--data_path", bad]) == 1
    assert main(["weights", "inspect", bad]) == 2
    logging.getLogger("plsc_mae").warning("see %s", bad)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        written = stream.buffer.getvalue()
        assert rb"\xb9\xb7" in written
        assert b"\x1b" not in written
    assert len(sys.stderr.buffer.getvalue().splitlines()) == 3  # the log message has two
