"""Downloads weight files, resumes interrupted downloads, and verifies files before use.

Data are written to NAME.partial. NAME.partial.json records the version of the file that they belong to, so that a later
request asks only for the rest of the same version (RFC 9110, Range and If-Range). The file gets its final name once it
has been read as weights and its size and checksum match the known ones, if there are any.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
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

MIRROR = "PLSC_MAE_MIRROR"  # environment variable with the address that replaces https://HOST of every URL
CHUNK = 1 << 20
MAX_PAUSE = 30.0  # seconds
# Values of response headers, of limited length because Python refuses to convert thousands of digits.
LENGTH = re.compile(r"[0-9]{1,18}")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)")
# HTTP statuses of temporary errors: timeout, too many requests, and failures of the server.
PASSING = {408, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """Temporary failure, after which another attempt may complete the download."""


class _Refused(Exception):
    """Permanent failure, after which another attempt at the same address is useless."""


@dataclass(frozen=True)
class _Version:
    """Version of the remote file that a partial file belongs to."""

    url: str
    validator: str  # strong ETag or Last-Modified date; empty if the server sends neither


@dataclass(frozen=True)
class _Answer:
    """Open response, the offset of its first byte in the file, the file's length if announced, and its version."""

    response: requests.Response
    start: int
    total: int | None
    version: _Version


@dataclass(frozen=True)
class Fetched:
    """Verified weight file."""

    path: Path  # location of the file
    downloaded: bool  # False if the file existed already
    sha256: str  # checksum of the file, in hexadecimal
    verdict: str  # result of the checksum verification, as text


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
    """Download a weight file unless it exists, resume an interrupted download, and verify the file in every case.

    A download that fails the verification is deleted; a file that existed already is kept. Proxies are taken from the
    environment (https_proxy, http_proxy, no_proxy).

    Args:
        url: http or https address.
        path: destination.
        checksum: expected checksum, or its first digits; None if unknown.
        size: expected size in bytes; None if unknown.
        retries: largest number of consecutive retries that bring no new data.
        timeout: seconds without data after which a connection counts as failed.
        pause: function that sleeps for a number of seconds between two attempts.

    Raises:
        ConfigError: the address, or that of the mirror, is not a URL of http or https.
        CheckpointError: the file cannot be downloaded or written, or fails the verification; or NAME.partial exists and
            was not written by this function.
    """
    path = Path(path)
    if os.path.exists(path):  # unlike Path.exists, it is False for a name that is too long
        return _checked(path, path, checksum, size, downloaded=False)
    mirror = os.environ.get(MIRROR, "")
    for address in (url, mirror or url):
        if not _is_web(address):
            raise ConfigError(f"cannot fetch {address}: expected a URL that starts with https:// or http://")
    url = mirrored(url, mirror)
    partial = path.with_name(f"{path.name}.partial")
    if _size(partial) and not _notes(partial).exists():
        raise CheckpointError(f"{partial} exists and was not downloaded by this command; move it, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, retries, timeout, pause)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {partial}: {error.strerror}; free some space or choose another --output_dir; the downloaded "
            "part is kept"
        ) from None
    except KeyboardInterrupt:
        logger.info("the downloaded part is kept in %s; run the same command again to resume", partial)
        raise
    try:
        done = _checked(partial, path, checksum, size, downloaded=True)
    except CheckpointError as error:
        _discard(partial)
        raise CheckpointError(f"the file downloaded from {url} is invalid and was deleted: {error}") from None
    os.replace(partial, path)
    _notes(partial).unlink(missing_ok=True)
    return done


def mirrored(url: str, mirror: str) -> str:
    """Replace the scheme and host of a URL by those of a mirror and prepend the mirror's path.

    Args:
        url: original address.
        mirror: base address of the mirror; if it is empty, `url` is returned unchanged.
    """
    if not mirror:
        return url
    base, parts = urlsplit(mirror), urlsplit(url)
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + parts.path, parts.query, ""))


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # the host name is malformed
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


# ------------------------------------------------------------------------------------------------ the connection


def _download(url: str, partial: Path, retries: int, timeout: float, pause: Callable[[float], None]) -> None:
    """Download a file, with several attempts if necessary."""
    most = _size(partial)
    failures = 0
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
                    f"cannot fetch {url}: {error}; gave up after {failures} failures in a row; run the same command "
                    f"again to resume, {_other_sources(partial)}"
                ) from None
            seconds = min(2.0 ** (failures - 1), MAX_PAUSE)
            logger.info(
                "%s after %d bytes: %s; retry %d of %d in %g s", url, arrived, error, failures, retries, seconds
            )
            pause(seconds)
        except _Refused as error:
            raise CheckpointError(
                f"cannot fetch {url}: {error}; check the address, {_other_sources(partial)}"
            ) from None


def _other_sources(partial: Path) -> str:
    other = "another mirror" if os.environ.get(MIRROR) else "a mirror"
    return f"name {other} with {MIRROR}=https://HOST, or put the file at {partial.with_suffix('')} by hand"


def _attempt(url: str, partial: Path, timeout: float) -> None:
    """Request the missing bytes and append them; request the whole file if the partial file cannot be continued."""
    have = _size(partial)
    version = _remembered(partial)
    continued = have if version.url == url and version.validator else 0
    response = _get(url, continued, version, timeout)
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and continued:
        response.close()
        if response.headers.get("Content-Range") == f"bytes */{have}":
            return  # the partial file is complete
        _discard(partial)
        raise _Interrupted("the length of the file has changed, so the download starts from the beginning")
    answer = _answer(url, response, continued, version)
    if answer is None:  # the response has another version, or starts at another byte
        response.close()
        answer = _answer(url, _get(url, 0, version, timeout), 0, version)
    if answer is None:
        raise _Interrupted("the server sends another part of the file than requested")
    with answer.response:
        if have and not answer.start:
            logger.info(
                "%s: downloading from the beginning, because the file has changed or the server cannot resume", url
            )
        _receive(answer, partial)


def _get(url: str, have: int, version: _Version, timeout: float) -> requests.Response:
    """Request a file from byte `have`, and return the response with its body unread."""
    # With a connection that stays open, a body that ends early would go unnoticed until the timeout.
    headers = {"User-Agent": "plsc-mae", "Accept-Encoding": "identity", "Connection": "close"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.validator}
    try:
        return requests.get(url, headers=headers, stream=True, timeout=timeout)
    except (InvalidSchema, InvalidURL, TooManyRedirects) as error:
        raise _Refused(str(error)) from None
    except requests.RequestException as error:
        if isinstance(_cause(error), socket.gaierror) and not have:  # with some bytes, the network was there before
            raise _Refused(f"its host is unknown ({_reason(error)}), or there is no network") from None
        raise _Interrupted(_reason(error)) from None


def _answer(url: str, response: requests.Response, have: int, version: _Version) -> _Answer | None:
    """Return a response as an `_Answer`; None if it is a part of the file that does not continue the partial file."""
    status, headers = response.status_code, response.headers
    if status >= HTTPStatus.BAD_REQUEST:
        response.close()
        reason = f"the server answers {status} {response.reason}"
        if status in PASSING:
            raise _Interrupted(reason)
        raise _Refused(reason)
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    if status != HTTPStatus.PARTIAL_CONTENT:
        length = headers.get("Content-Length", "")
        return _Answer(response, 0, int(length) if LENGTH.fullmatch(length) else None, _Version(url, validator))
    match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or int(match[1]) != have or validator not in ("", version.validator):
        return None
    return _Answer(response, have, None if match[2] == "*" else int(match[2]), version)


def _receive(answer: _Answer, partial: Path) -> None:
    """Append the body of a response to the partial file, or overwrite the file if the body starts at byte 0."""
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
    """Yield the bytes of a urllib3 response as they arrive, so that none are lost if the connection breaks.

    `Response.iter_content` would wait for a whole chunk, and drop an incomplete one when the connection ends.
    """
    body.enforce_content_length = False  # `_receive` compares the length and reports the offset
    while True:
        try:
            chunk = body.read1(CHUNK)
        except urllib3.exceptions.HTTPError as error:
            raise _Interrupted(_reason(error)) from None
        if not chunk:
            return
        yield chunk


def _cause(error: BaseException) -> BaseException:
    """Return the innermost cause of a failed connection."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failed connection as text."""
    cause = _cause(error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


# ------------------------------------------------------------------------------------------------ the files


def _notes(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _remembered(partial: Path) -> _Version:
    """Return the version that a partial file belongs to; `url` and `validator` are empty if it is unknown."""
    try:
        notes: Any = json.loads(_notes(partial).read_text(encoding="utf-8"))
        return _Version(str(notes["url"]), str(notes["validator"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Version("", "")


def _discard(partial: Path) -> None:
    for path in (partial, _notes(partial)):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if os.path.exists(path) else 0


def _checked(file: Path, path: Path, checksum: Checksum | None, size: int | None, *, downloaded: bool) -> Fetched:
    """Check that `file` can be read as weights and has this size and checksum; return its record for `path`.

    Args:
        file: the file to check.
        path: its final path.
        checksum: expected checksum; None if unknown.
        size: expected size in bytes; None if unknown.
        downloaded: whether the file has been downloaded by this call of `fetch`.
    """
    remedy = "" if downloaded else "; remove it to fetch it again"
    read_file(file)
    if size is not None and _size(file) != size:
        raise CheckpointError(f"{file} has {_size(file)} bytes, expected {size}{remedy}")
    algorithms = {"sha256", checksum.algorithm if checksum else "sha256"}
    found = digests(file, algorithms)
    if checksum is None:
        verdict = "not verified, because no checksum is known; computed sha256:" + found["sha256"]
        return Fetched(path, downloaded, found["sha256"], verdict)
    digest = found[checksum.algorithm]
    if not digest.startswith(checksum.digits):
        raise CheckpointError(f"{file} has the checksum {checksum.algorithm}:{digest}, expected {checksum}{remedy}")
    known = "checksum verified" if checksum.is_whole else "known digits of the checksum verified"
    return Fetched(path, downloaded, found["sha256"], f"{known}, {checksum}")


def digests(path: Path, algorithms: set[str]) -> dict[str, str]:
    """Return the checksums of a file as {algorithm: hexadecimal digits}.

    Raises:
        CheckpointError: the file cannot be read.
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
