"""Files that an option cannot use are recognized by their first bytes; lists of paths are text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sqlite3
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from plsc_mae.errors import ConfigError
from plsc_mae.file_kinds import HEAD_BYTES, first_foreign_line, read_head, recognize, require_text


def tar(form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        member = tarfile.TarInfo("a.png")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return stream.getvalue()


def old_tar() -> bytes:
    """Return a header as before POSIX, without `ustar`."""
    header = bytearray(tar(tarfile.USTAR_FORMAT)[:512])
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def picture(form: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, form)
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def database(path) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("create table images (data blob)")
    connection.close()
    return path.read_bytes()


KINDS = {
    "zip": (zipped("train/a.png"), "a zip archive", "archive"),
    "npz": (zipped("a.npy"), "a NumPy file of arrays (.npz)", "table"),
    "torch": (zipped("archive/data.pkl"), "a weight file of torch", "weights"),
    "gzip": (gzip.compress(b"a"), "a gzip archive", "archive"),
    "bzip2": (bz2.compress(b"a"), "a bzip2 archive", "archive"),
    "xz": (lzma.compress(b"a"), "an xz archive", "archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive", "archive"),
    "rar": (b"Rar!\x1a\x07\0", "a RAR archive", "archive"),
    "ustar": (tar(tarfile.USTAR_FORMAT), "a tar archive", "archive"),
    "gnu": (tar(tarfile.GNU_FORMAT), "a tar archive", "archive"),
    "pax": (tar(tarfile.PAX_FORMAT), "a tar archive", "archive"),
    "old tar": (old_tar(), "a tar archive", "archive"),
    "parquet": (b"PAR1\x15\4\0", "a Parquet file", "table"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file", "table"),
    "lmdb": (bytes(16) + b"\xde\xc0\xef\xbe", "an LMDB database", "table"),
    # The CRC-32C of b"123456789" is 0xE3069283 by the code that computed this one.
    "tfrecord": (struct.pack("<QI", 100, 0xDF1C5F43) + b"x" * 100, "a TFRecord file", "table"),
    "recordio": (b"\x0a\x23\xd7\xce\1\0", "an MXNet RecordIO file", "table"),
    "npy": (array(), "a NumPy array (.npy)", "table"),
    "jpeg": (picture("JPEG"), "a JPEG image", "picture"),
    "png": (picture("PNG"), "a PNG image", "picture"),
    "gif": (picture("GIF"), "a GIF image", "picture"),
    "bmp": (picture("BMP"), "a BMP image", "picture"),
    "tiff": (picture("TIFF"), "a TIFF image", "picture"),
    "webp": (picture("WEBP"), "a WebP image", "picture"),
    "ppm": (picture("PPM"), "a PNM image", "picture"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", "picture"),
    "heic": (b"\0\0\0\x18ftypheic", "a HEIC image", "picture"),
    "avif": (b"\0\0\0\x1cftypavif", "an AVIF image", "picture"),
    "dicom": (bytes(128) + b"DICM", "a DICOM image", "picture"),
    "mp4": (b"\0\0\0\x18ftypisom", "a video", "other"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\0", "a PDF document", "other"),
    "elf": (b"\x7fELF\2\1\1\0", "a program (ELF)", "other"),
    "pickle": (b"\x80\x04\x95\0", "a pickle of Python", "weights"),
    "safetensors": (struct.pack("<Q", 90) + b'{"a":', "a safetensors file", "weights"),
    "utf-16": ("a.png\n".encode("utf-16"), "UTF-16 text", "encoding"),
    "utf-16-le": ("a.png 0\n".encode("utf-16-le"), "UTF-16 text", "encoding"),
    "utf-16-be": ("a.png 0\n".encode("utf-16-be"), "UTF-16 text", "encoding"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "pointer"),
    "json": (b'{\n "images": [', "a JSON file", "text"),
    "html": (b"\n<!DOCTYPE html>", "a web page or XML file", "text"),
    "empty": (b"", "an empty file", "other"),
    "noise": (np.random.default_rng(0).bytes(4096), "a binary file", "other"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_recognized(name):
    content, described, group = KINDS[name]
    assert recognize(content[:HEAD_BYTES]) == (described, group)


def test_a_database_is_recognized(tmp_path):
    assert recognize(database(tmp_path / "a.db")) == ("an SQLite database", "table")


@pytest.mark.parametrize(
    "text",
    [
        "MZ/a.png 0\n",
        "[x]/a.png\n",
        "BM01.bmp\n",
        "ORC/1.jpg",
        "P5/a.pgm",
        "\ufeffa.png",
        "狗/照片.png 3\n",
        "GIF8.jpg",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_list_of_paths_is_text(text, encoding):
    assert recognize(text.encode(encoding)) is None


def test_text_files_only(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(gzip.compress(b"cat\ndog\n"))
    with pytest.raises(ConfigError, match=r"--classes .*names.txt is a gzip archive; expected a list of names"):
        require_text(path, f"--classes {path}", "a list of names", ConfigError)
    for content in (b"cat\ndog\n", b"", b'["cat", "dog"]'):
        path.write_bytes(content)
        require_text(path, "x", "y", ConfigError)


def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a pipe"):
        read_head(tmp_path / "pipe")
    require_text(tmp_path / "pipe", "x", "y", ConfigError)


def test_a_foreign_line_is_found_also_after_a_very_long_one(tmp_path):
    path = tmp_path / "list.txt"
    long = "a" + "é" * (1 << 20)
    path.write_bytes(f"{long}\n{long}".encode())
    assert first_foreign_line(path) is None
    path.write_bytes(f"{long}\n".encode() + " 中文 \n".encode("gbk"))
    found = first_foreign_line(path)
    assert (found.number, found.byte, found.gbk) == (2, "中文".encode("gbk")[0], "中文")
    path.write_bytes("é".encode()[:1])
    assert first_foreign_line(path).number == 1
