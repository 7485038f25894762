"""Downloads weight files: goes on where it stopped, checks before use, and leaves either a good file or a partial one.

Bytes arrive in NAME.partial. Beside it, NAME.partial.json remembers which version of the file they belong to, so that a
later request asks for the rest of that version only (RFC 9110, Range and If-Range). The file gets its name when it can
be read as weights and has the size and the checksum that are known of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3
from requests.exceptions import InvalidSchema, InvalidURL, TooManyRedirects
from tqdm import tqdm

from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.weights.manifest import Checksum
from plsc_mae.weights.reader import read_file

logger = logging.getLogger(__name__)

MIRROR = "PLSC_MAE_MIRROR"  # environment variable with what replaces https://HOST of every address
CHUNK = 1 << 20
MAX_PAUSE = 30.0  # seconds
# Servers that may answer another time: timeout, too many requests, and their own failures.
PASSING = {408, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The connection failed or ended early; another try may go on from there."""


@dataclass(frozen=True)
class _Version:
    """Which version of which file a partial file belongs to."""

    url: str
    validator: str  # strong ETag, or date of last change; empty where the server tells neither


@dataclass(frozen=True)
class _Answer:
    """An open response: the offset of its first byte, the length of the whole file if announced, and its version."""

    response: requests.Response
    start: int
    total: int | None
    version: _Version


@dataclass(frozen=True)
class Fetched:
    """A file that is there and good."""

    path: Path
    downloaded: bool  # False: it had been there
    sha256: str
    verdict: str  # what it was checked by, in words


def fetch(
    url: str,
    path: str | Path,
    *,
    checksum: Checksum | None = None,
    size: int | None = None,
    retries: int = 5,
    timeout: float = 30.0,
    pause: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download a weight file, unless it is there; a download that was interrupted goes on.

    Proxies are those of the environment (https_proxy, http_proxy, no_proxy).

    Args:
        url: http or https.
        path: where to put it.
        checksum: as far as it is known.
        size: in bytes, if it is known.
        retries: how often in a row a connection may fail without bringing anything new.
        timeout: of a silent connection, in seconds.
        pause: sleeps between tries.

    Raises:
        ConfigError: no such address can be fetched.
        CheckpointError: the file cannot be had, cannot be written, or is not what it should be.
    """
    path = Path(path)
    if path.exists():
        return _checked(path, path, checksum, size, downloaded=False)
    url = mirrored(url, os.environ.get(MIRROR, ""))
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"cannot fetch {url}: expected an address that starts with https:// or http://")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, retries, timeout, pause)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {partial}: {error.strerror}; free some space or choose another --output_dir; what has "
            "arrived is kept"
        ) from None
    except KeyboardInterrupt:
        logger.info("%s keeps what has arrived; the same command goes on from there", partial)
        raise
    try:
        done = _checked(partial, path, checksum, size, downloaded=True)
    except CheckpointError as error:
        _discard(partial)
        raise CheckpointError(f"{url} is not what was asked for and was not kept: {error}") from None
    os.replace(partial, path)
    _notes(partial).unlink(missing_ok=True)
    return done


def mirrored(url: str, mirror: str) -> str:
    """Replace scheme and host of an address by those of a mirror, before whose path its own begins, if there is one."""
    if not mirror:
        return url
    base, parts = urlsplit(mirror), urlsplit(url)
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + parts.path, parts.query, ""))


# ------------------------------------------------------------------------------------------------ the connection


def _download(url: str, partial: Path, retries: int, timeout: float, pause: Callable[[float], None]) -> None:
    """Try until everything is there; trying is given up when `retries` tries in a row have brought nothing new.

    Raises:
        CheckpointError: the server refuses, or every try has failed.
    """
    most, failures = _size(partial), 0
    while True:
        try:
            _attempt(url, partial, timeout)
            return
        except _Interrupted as error:
            arrived = _size(partial)
            failures = 1 if arrived > most else failures + 1
            most = max(most, arrived)
            if failures > retries:
                raise CheckpointError(
                    f"cannot fetch {url}: {error}; gave up after {failures} failures in a row; the same command "
                    "goes on with what has arrived"
                ) from None
            seconds = min(2.0 ** (failures - 1), MAX_PAUSE)
            logger.info("%s after %d bytes: %s; try %d of %d in %g s", url, arrived, error, failures, retries, seconds)
            pause(seconds)


def _attempt(url: str, partial: Path, timeout: float) -> None:
    """Request the missing bytes and append them, or all of them if the partial file cannot be continued.

    Raises:
        CheckpointError: the server refuses.
        _Interrupted: the connection failed, or ended early.
    """
    have, version = _size(partial), _remembered(partial)
    continued = have if version.url == url and version.validator else 0
    response = _get(url, continued, version, timeout)
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and continued:
        response.close()
        if response.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it had arrived
        _discard(partial)
        raise _Interrupted("the file has another length now, so it starts again")
    answer = _answer(url, response, continued, version)
    if answer is None:  # a part of another version, or another part
        response.close()
        answer = _answer(url, _get(url, 0, version, timeout), 0, version)
    if answer is None:
        raise _Interrupted("the server sends a part of the file that was not asked for")
    with answer.response:
        if have and not answer.start:
            logger.info("%s starts again: the file has changed, or the server sends whole files only", url)
        _receive(answer, partial)


def _get(url: str, have: int, version: _Version, timeout: float) -> requests.Response:
    """Request a file from a byte on, and return the response with its body unread.

    Raises:
        CheckpointError: a redirection leads to an address that cannot be fetched.
        _Interrupted: there is no answer.
    """
    # A connection that stays open would hide that a body has ended early until the timeout.
    headers = {"User-Agent": "plsc-mae", "Accept-Encoding": "identity", "Connection": "close"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.validator}
    try:
        return requests.get(url, headers=headers, stream=True, timeout=timeout)
    except (InvalidSchema, InvalidURL, TooManyRedirects) as error:
        raise CheckpointError(f"cannot fetch {url}: {error}") from None
    except requests.RequestException as error:
        raise _Interrupted(_reason(error)) from None


def _answer(url: str, response: requests.Response, have: int, version: _Version) -> _Answer | None:
    """Return what a response announces, or None if it is a part that does not continue the partial file.

    Raises:
        CheckpointError: the server refuses.
        _Interrupted: the server cannot answer at the moment.
    """
    status, headers = response.status_code, response.headers
    if status >= HTTPStatus.BAD_REQUEST:
        response.close()
        reason = f"the server answers {status} {response.reason}"
        if status in PASSING:
            raise _Interrupted(reason)
        raise CheckpointError(f"cannot fetch {url}: {reason}")
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    if status != HTTPStatus.PARTIAL_CONTENT:
        length = headers.get("Content-Length", "")
        return _Answer(response, 0, int(length) if length.isdecimal() else None, _Version(url, validator))
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None or int(match[1]) != have or validator not in ("", version.validator):
        return None
    return _Answer(response, have, None if match[2] == "*" else int(match[2]), version)


def _receive(answer: _Answer, partial: Path) -> None:
    """Write what arrives behind what is there, or from the beginning.

    Raises:
        _Interrupted: less arrived than was announced.
        OSError: it cannot be written.
    """
    arrived = answer.start
    with open(partial, "ab" if answer.start else "wb") as file:
        if not answer.start:
            _notes(partial).write_text(json.dumps(asdict(answer.version)), encoding="utf-8")
        name = partial.name.removesuffix(".partial")
        with tqdm(
            total=answer.total, initial=arrived, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None
        ) as bar:
            for chunk in _chunks(answer.response.raw):
                file.write(chunk)
                arrived += len(chunk)
                bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if answer.total is not None and arrived < answer.total:
        raise _Interrupted(f"the connection ended at {arrived} of {answer.total} bytes")


def _chunks(body: Any) -> Iterator[bytes]:
    """Yield the bytes of a urllib3 response as they arrive, so that a cut connection loses none.

    `Response.iter_content` would wait for a whole chunk, and drop what it holds of one when the connection ends.
    """
    body.enforce_content_length = False  # `_receive` compares the length and reports the place
    while True:
        try:
            chunk = body.read1(CHUNK)
        except urllib3.exceptions.HTTPError as error:
            raise _Interrupted(_reason(error)) from None
        if not chunk:
            return
        yield chunk


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failed connection in words."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ------------------------------------------------------------------------------------------------ the files


def _notes(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _remembered(partial: Path) -> _Version:
    """The version that a partial file belongs to; one of no address where that is not known."""
    try:
        notes: Any = json.loads(_notes(partial).read_text(encoding="utf-8"))
        return _Version(str(notes["url"]), str(notes["validator"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Version("", "")


def _discard(partial: Path) -> None:
    for path in (partial, _notes(partial)):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _checked(file: Path, path: Path, checksum: Checksum | None, size: int | None, *, downloaded: bool) -> Fetched:
    """Check a file: that it holds weights, its size, its checksum.

    Raises:
        CheckpointError: it is not what it should be.
    """
    remedy = "" if downloaded else "; remove it to fetch it again"
    read_file(file)
    if size is not None and _size(file) != size:
        raise CheckpointError(f"{file} has {_size(file)} bytes instead of {size}{remedy}")
    algorithms = {"sha256", checksum.algorithm if checksum else "sha256"}
    found = digests(file, algorithms)
    if checksum is None:
        verdict = "no checksum of it is known; its own is sha256:" + found["sha256"]
        return Fetched(path, downloaded, found["sha256"], verdict)
    digest = found[checksum.algorithm]
    if not digest.startswith(checksum.digits):
        raise CheckpointError(f"{file} has the checksum {checksum.algorithm}:{digest} instead of {checksum}{remedy}")
    known = "its checksum is right" if checksum.is_whole else "its checksum begins with the digits that are known"
    return Fetched(path, downloaded, found["sha256"], f"{known}, {checksum}")


def digests(path: Path, algorithms: set[str]) -> dict[str, str]:
    """Checksums of a file: {algorithm: hexadecimal digits}.

    Raises:
        CheckpointError: it cannot be read.
    """
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    try:
        with open(path, "rb") as file:
            for chunk in _blocks(file):
                for each in hashes.values():
                    each.update(chunk)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return {name: each.hexdigest() for name, each in hashes.items()}


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
