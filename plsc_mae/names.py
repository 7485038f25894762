r"""One way to print and write the names of files and classes, whatever their bytes are.

On Linux a name is a sequence of bytes. Python represents bytes that are not UTF-8 (GBK, Latin-1, Shift JIS) by lone
surrogates, which no UTF-8 stream or file accepts. The rule of this package: a byte that cannot be shown is written as
`\xNN`. These are the bytes outside valid UTF-8, the bytes of control characters and of line separators and, on a
terminal with a smaller character set, the bytes of the characters that it lacks.

`escape_name` applies the rule to a name that is written to a file or printed, and `restore_name` reverses it.
`escape_streams` applies it to everything else that the program prints. JSON has its own escapes, see `as_json`.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import re
import sys
from typing import Any

GBK = "gb18030"  # Python's name of the superset
_HANDLER = "plsc_mae.escape"
_LITERAL_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, line separators, lone surrogates
_PARENTS = re.compile(r"^(\.\./+)+")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # text may have several lines and tabs


def escape_name(name: str) -> str:
    r"""Return a name as text that can be printed and written as UTF-8, and from which the name can be restored.

    Bytes that cannot be shown become `\xNN` (see the module). A backslash that already looks like the start of such an
    escape becomes `\x5c`, so two names never have the same result. All other names are unchanged.
    """
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    text = _to_bytes(_LITERAL_ESCAPE.sub(r"\\x5c", name)).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: _escape(match[0]), text)


def restore_name(text: str) -> str:
    r"""Return the name from which `escape_name` made `text`; the file system accepts it."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), _to_bytes(text)))


def without_parents(path: str) -> str:
    """Return a path for people without leading ../, which lists beside or below the folder of their images have."""
    return _PARENTS.sub("", path)


def as_json(content: Any, indent: int | None = None) -> str:
    r"""Return `content` as JSON for a UTF-8 file, on one line unless `indent` is given.

    Control characters, line separators and bytes outside UTF-8 are escaped; accented letters, for example, are not.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def gbk_reading(name: str) -> str:
    """Decode the name of a file or class as GBK; return "" if its bytes are UTF-8 or not GBK.

    The name may be escaped, as `escape_name` returns it, or not.
    """
    return gbk_text(os.fsencode(restore_name(name)))


def gbk_text(content: bytes) -> str:
    """Decode bytes as GBK, or its superset GB18030; return "" if they are UTF-8 or belong to neither."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(GBK)
    return ""


def escape_controls(text: str, *, one_line: bool = False) -> str:
    r"""Return a message with every control character as `\xNN`; tabs and line feeds stay unless `one_line` is true.

    Unescaped, a name in the message could move the cursor of a terminal.
    """
    return (_CONTROL if one_line else _CONTROL_IN_TEXT).sub(lambda match: _escape(match[0]), text)


def escape_streams() -> None:
    r"""Make stdout and stderr replace each character that they cannot encode by its UTF-8 bytes, written as `\xNN`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _escape(characters: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in _to_bytes(characters))


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that no file name has, for instance from a JSON file
        return text.encode("utf-8", "surrogatepass")


def _on_encode_error(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escape(error.object[error.start : error.end]), error.end


codecs.register_error(_HANDLER, _on_encode_error)
