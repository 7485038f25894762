"""Recognition of files by their first bytes, for messages about files that an option cannot use."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path
from typing import Literal, NamedTuple

from plsc_mae.errors import UserError
from plsc_mae.names import gbk_text

HEAD_BYTES = 4096
EMPTY = "an empty file"
UNKNOWN = "a binary file"
UTF16 = "UTF-16 text"
TABLE_SUFFIXES = (".csv", ".tsv")
UTF8 = "utf-8-sig"  # of text that users write, with or without a byte order mark
_MAX_LINE = 1 << 20  # bytes that are read at a time
Group = Literal["archive", "picture", "table", "weights", "pointer", "text", "encoding", "other"]


class FileKind(NamedTuple):
    """Kind of a file: a noun phrase such as "a zip archive", and its group, which determines the remedy."""

    name: str
    group: Group


# (offset, bytes, name, group), the first match wins
_SIGNATURES: tuple[tuple[int, bytes, str, Group], ...] = (
    (0, b"\x1f\x8b", "a gzip archive", "archive"),
    (4, b"1AY&SY", "a bzip2 archive", "archive"),
    (0, b"\xfd7zXZ\0", "an xz archive", "archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", "archive"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 archive", "archive"),
    (0, b"\x1f\x9d", "a compressed archive (.Z)", "archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "archive"),
    (0, b"MSCF", "a cabinet archive", "archive"),
    (0, b"!<arch>\n", "an ar archive", "archive"),
    (0, b"hsqs", "a SquashFS image", "archive"),
    (257, b"ustar", "a tar archive", "archive"),
    (0, b"PAR1", "a Parquet file", "table"),
    (0, b"ARROW1", "an Arrow file", "table"),
    (0, b"FEA1", "a Feather file", "table"),
    (0, b"ORC", "an ORC file", "table"),
    (0, b"Obj\x01", "an Avro file", "table"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "table"),
    (0, b"CDF\x01", "a NetCDF file", "table"),
    (0, b"CDF\x02", "a NetCDF file", "table"),
    (0, b"MATLAB 5.0", "a MATLAB file", "table"),
    (0, b"SQLite format 3\0", "an SQLite database", "table"),
    (16, b"\xde\xc0\xef\xbe", "an LMDB database", "table"),
    (0, b"\x0a\x23\xd7\xce", "an MXNet RecordIO file", "table"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", "table"),
    (0, b"\xff\xd8\xff", "a JPEG image", "picture"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", "picture"),
    (0, b"GIF8", "a GIF image", "picture"),
    (0, b"II*\0", "a TIFF image", "picture"),
    (0, b"MM\0*", "a TIFF image", "picture"),
    (0, b"II+\0", "a BigTIFF image", "picture"),
    (0, b"MM\0+", "a BigTIFF image", "picture"),
    (8, b"WEBP", "a WebP image", "picture"),
    (4, b"ftypavi", "an AVIF image", "picture"),
    (4, b"ftyphei", "a HEIC image", "picture"),
    (4, b"ftyphev", "a HEIC image", "picture"),
    (4, b"ftypmif1", "a HEIF image", "picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image", "picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", "picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image", "picture"),
    (0, b"\xff\x0a", "a JPEG XL image", "picture"),
    (128, b"DICM", "a DICOM image", "picture"),
    (0, b"8BPS", "a Photoshop image", "picture"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", "picture"),
    (0, b"#?RADIANCE", "a Radiance HDR image", "picture"),
    (0, b"qoif", "a QOI image", "picture"),
    (0, b"\0\0\1\0", "an icon (.ico)", "picture"),
    (0, b"SIMPLE  =", "a FITS image", "picture"),
    (4, b"ftyp", "a video", "other"),
    (8, b"AVI ", "a video", "other"),
    (0, b"\x1a\x45\xdf\xa3", "a video", "other"),
    (0, b"%PDF-", "a PDF document", "other"),
    (0, b"\x7fELF", "a program (ELF)", "other"),
    (0, b"MZ", "a Windows program", "other"),
    (0, b"\xcf\xfa\xed\xfe", "a macOS program", "other"),
    (0, b"\xff\xfe", UTF16, "encoding"),
    (0, b"\xfe\xff", UTF16, "encoding"),
)
REMEDIES: dict[Group, str] = {
    "archive": "unpack it and pass the folder",
    "picture": "pass the folder of the image",
    "table": "write its images to files, for example PNG, and pass their folder",
    "weights": "weight files belong to other options",
    "pointer": "fetch the file itself with `git lfs pull`",
    "text": "pass the folder of the images",
    "encoding": "save it as UTF-8",
    "other": "pass the folder of the images",
}
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_PNM = re.compile(rb"P[1-7][ \t\r\n#]")
_JSON = re.compile(rb"\s*[\[{]\s*([\"\[{\]}]|\r?\n|$)")
_MARKUP = re.compile(rb"\s*<(!|\?|html|svg|head)", re.IGNORECASE)
_LFS = b"version https://git-lfs"
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\r\f\x1b"))


def read_head(path: str | Path) -> bytes:
    """Return the first 4096 bytes of a regular file, or all of a shorter one.

    Raises:
        OSError: the file cannot be read, or is a pipe, socket or device; the call does not wait for these.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(None, "it is a pipe, socket or device, not a regular file", str(path))
        return file.read(HEAD_BYTES)


class ForeignLine(NamedTuple):
    """A line that is not UTF-8."""

    number: int  # number of the line in the file, from 1
    byte: int  # its first byte that is not UTF-8
    content: bytes  # the line, at most 1 MiB of it, without blanks around it

    @property
    def gbk(self) -> str:
        """The line decoded as GBK; "" if it is not GBK."""
        return gbk_text(self.content)

    def __str__(self) -> str:
        return f"byte 0x{self.byte:02x} in line {self.number}"


def first_foreign_line(path: str | Path) -> ForeignLine | None:
    """Return the first line of a file that is not UTF-8; None if the whole file is UTF-8.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        number, decode = 1, codecs.getincrementaldecoder("utf-8")().decode
        while piece := file.readline(_MAX_LINE):
            try:
                decode(piece, final=not file.peek(1))
            except UnicodeDecodeError as error:
                return ForeignLine(number, error.object[error.start], piece.strip())
            number += piece.endswith(b"\n")
    return None


def recognize(head: bytes) -> FileKind | None:
    """Return the kind of a file by its first 4096 bytes `head`; None for text of no known format."""
    if not head:
        return FileKind(EMPTY, "other")
    if head[:4] in (b"PK\3\4", b"PK\5\6", b"PK\7\x08"):
        return _zip_kind(head)
    binary = len(head.translate(None, _CONTROLS)) < len(head)
    for offset, magic, name, group in _SIGNATURES:
        # A list of paths may begin with printable magic, for instance with a folder MZ.
        if head.startswith(magic, offset) and (binary or not (magic.isascii() and magic.decode().isprintable())):
            return FileKind(name, group)
    if _PNM.match(head):
        return FileKind("a PNM image", "picture")
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return FileKind("a BMP image", "picture")
    if _is_old_tar(head):
        return FileKind("a tar archive", "archive")
    if _is_tfrecord(head):
        return FileKind("a TFRecord file", "table")
    return _text_kind(head)


def require_text(path: str | Path, where: str, expected: str, error: type[UserError]) -> None:
    """Raise `error` if a regular file is UTF-16 text, a Git LFS pointer, or neither text nor empty.

    Pipes, such as those of `<(command)`, are not examined.

    Args:
        path: the file.
        where: start of the message: the option and its value.
        expected: noun phrase for the message.
        error: class of the exception.

    Raises:
        OSError: the file cannot be read.
    """
    kind = recognize(read_head(path)) if os.path.isfile(path) else None
    if kind is not None and kind.group != "text" and kind.name != EMPTY:
        raise error(f"{where} is {kind.name}; expected {expected}")


def _zip_kind(head: bytes) -> FileKind:
    """Return the kind of a zip file, judged by the name of its first entry."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.endswith(b".npy"):
        return FileKind("a NumPy file of arrays (.npz)", "table")
    if name.endswith(b"data.pkl"):
        return FileKind("a weight file of torch", "weights")
    return FileKind("a zip archive", "archive")


def _is_old_tar(head: bytes) -> bool:
    """Return whether `head` has the checksum of a tar header; archives before POSIX have no other mark."""
    stored = re.fullmatch(rb" *([0-7]{1,7})[ \0]*", head[148:156])
    if stored is None or len(head) < 512:
        return False
    return sum(head[:148]) + 8 * ord(" ") + sum(head[156:512]) == int(stored[1], 8)


def _is_tfrecord(head: bytes) -> bool:
    """Return whether `head` starts with an 8-byte length and its masked CRC-32C (TensorFlow's TFRecord format)."""
    crc = 0xFFFFFFFF
    for byte in head[:8]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return len(head) > 12 and head[8:12] == masked.to_bytes(4, "little")


def _is_ascii_beside_zeros(characters: bytes, others: bytes) -> bool:
    """Return whether `characters` are ASCII text and the `others` between them are 0, as in UTF-16 without its mark."""
    is_text = characters.isascii() and characters.translate(None, _CONTROLS) == characters
    return is_text and len(others) > 1 and not any(others)


def _text_kind(head: bytes) -> FileKind | None:
    if _PICKLE.match(head):
        return FileKind("a pickle of Python", "weights")
    if head[8:9] == b"{" and b"\0" in head[:8]:
        return FileKind("a safetensors file", "weights")
    if any(_is_ascii_beside_zeros(head[first::2], head[1 - first :: 2]) for first in (0, 1)):
        return FileKind(UTF16, "encoding")
    if b"\0" in head or 100 * (len(head) - len(head.translate(None, _CONTROLS))) > len(head):
        return FileKind(UNKNOWN, "other")
    if head.startswith(_LFS):
        return FileKind("a Git LFS pointer", "pointer")
    if _JSON.match(head):
        return FileKind("a JSON file", "text")
    if _MARKUP.match(head):
        return FileKind("a web page or XML file", "text")
    return None
