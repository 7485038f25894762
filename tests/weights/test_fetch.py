"""Downloads from a real HTTP server with faults: cut connections, wrong lengths, ignored headers, changed files."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
from requests.structures import CaseInsensitiveDict
from safetensors.numpy import save

from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.weights import fetch as module
from plsc_mae.weights.fetch import fetch, mirrored
from plsc_mae.weights.manifest import Checksum

LARGE = 300_000


def weight_file(seed: int) -> bytes:
    """Return the content of a small weight file."""
    return save({"a": np.random.default_rng(seed).random((LARGE // 8,), dtype=np.float64)})


DATA, OTHER = weight_file(0), weight_file(1)
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """HTTP server that serves `data` under every path, with the faults that a test configures."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.etag: str | None = '"one"'
        self.last_modified: str | None = None
        self.ranges = True  # True: it supports Range
        self.if_range = True  # True: it supports If-Range
        self.cuts: list[int] = []  # numbers of bytes after which the next connections are cut
        self.errors: list[int] = []  # status codes of the next responses
        self.status = 0  # status code of all responses if not 0
        self.announced = 0  # difference of Content-Length from the number of bytes sent
        self.redirects: dict[str, str] = {}
        self.chunked = False
        self.after_answer = lambda: None
        self.asked: list[tuple[str, str | None]] = []  # path and Range of every request
        self.conditions: list[str | None] = []  # If-Range of every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/small.safetensors"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        server.conditions.append(self.headers.get("If-Range"))
        status = server.errors.pop(0) if server.errors else server.status
        if self.path in server.redirects:
            return self._head(302, {"Location": server.redirects[self.path], "Content-Length": "0"})
        if status:
            return self._head(status, {"Content-Length": "0"})
        start, fits = 0, self.headers.get("If-Range") in (None, server.etag, server.last_modified)
        if wanted and server.ranges and (fits or not server.if_range):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(server.data):
            return self._head(416, {"Content-Range": f"bytes */{len(server.data)}", "Content-Length": "0"})
        headers = {"ETag": server.etag, "Last-Modified": server.last_modified}
        body = server.data[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(server.data) - 1}/{len(server.data)}"
        if server.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) + server.announced)
        self._head(206 if start else 200, headers)
        whole = len(body)
        if server.cuts:
            body = body[: server.cuts.pop(0)]
        if server.chunked:
            end = b"\r\n0\r\n\r\n" if len(body) == whole else b""
            body = f"{whole:x}\r\n".encode() + body + end
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except ConnectionError:
            pass  # the client has closed the connection
        server.after_answer()
        return None

    def _head(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(module.MIRROR, raising=False)
    monkeypatch.setattr(module, "CHUNK", 1 << 14)  # so that small files arrive in several pieces
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def logged(caplog, monkeypatch):
    """Return a function that lists the log messages so far."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    caplog.set_level(logging.INFO, "plsc_mae.weights.fetch")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "new" / "small.safetensors"


def get(server: Server, target: Path, **options):
    pauses: list[float] = []
    done = fetch(server.url, target, timeout=5, pause=pauses.append, **options)
    assert target.read_bytes() == server.data
    assert [path.name for path in target.parent.iterdir()] == [target.name], "nothing else is left"
    return done, pauses


def partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def cut(server: Server, target: Path, *cuts: int) -> None:
    """Interrupt a download, so that a partial file remains."""
    server.cuts = list(cuts)
    with pytest.raises(CheckpointError, match="gave up after 1 failures"):
        fetch(server.url, target, timeout=5, retries=0)
    assert not target.exists()


@pytest.mark.parametrize(
    ("checksum", "verdict"),
    [
        (None, f"not verified, because no checksum is known; computed sha256:{SHA256}"),
        (Checksum("md5", MD5), f"checksum verified, md5:{MD5}"),
        (Checksum("sha256", SHA256), f"checksum verified, sha256:{SHA256}"),
        (Checksum("md5", MD5[:6]), f"known digits of the checksum verified, md5:{MD5[:6]}"),
    ],
)
def test_a_good_file_arrives_and_is_not_fetched_twice(server, target, checksum, verdict):
    done, pauses = get(server, target, checksum=checksum, size=len(DATA))
    assert (done.path, done.downloaded, done.sha256, done.verdict) == (target, True, SHA256, verdict)
    assert server.asked == [("/models/small.safetensors", None)]
    assert pauses == []
    again, _ = get(server, target, checksum=checksum, size=len(DATA))
    assert (again.downloaded, again.verdict) == (False, verdict)
    assert len(server.asked) == 1


def test_a_cut_connection_is_resumed(server, target, logged):
    server.cuts = [100_000, 0, 150_000]
    done, pauses = get(server, target, checksum=Checksum("md5", MD5))
    assert done.downloaded
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=100000-", "bytes=250000-"]
    assert pauses == [1.0, 2.0, 1.0]  # an attempt with new data resets the count
    assert len(logged()) == 3
    assert f"the connection ended at 100000 of {len(DATA)} bytes; retry 1 of 5 in 1 s" in logged()[0]


def test_a_later_call_resumes_too(server, target, logged):
    cut(server, target, 70_000)
    assert partial(target).stat().st_size == 70_000
    get(server, target, checksum=Checksum("md5", MD5))
    assert server.asked[-1][1] == "bytes=70000-"
    assert server.conditions == [None, '"one"']


def test_a_date_does_where_there_is_no_etag(server, target):
    server.etag, server.last_modified = None, "Sat, 22 Nov 2025 10:00:00 GMT"
    cut(server, target, 70_000)
    get(server, target)
    assert server.asked[-1][1] == "bytes=70000-"
    assert server.conditions == [None, server.last_modified]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_version_the_download_starts_again(server, target, logged, etag):
    """Without a known checksum, two halves of different files would go unnoticed."""
    server.etag = etag
    cut(server, target, 70_000)
    get(server, target)
    assert server.asked[-1][1] is None
    assert any("from the beginning" in line for line in logged())


def test_an_unknown_partial_file_is_neither_continued_nor_replaced(server, target):
    target.parent.mkdir()
    partial(target).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=f"{partial(target)} exists"):
        get(server, target)
    assert partial(target).read_bytes() == b"something else"
    partial(target).write_bytes(DATA[:1000])
    partial(target).with_name(partial(target).name + ".json").write_text("{broken")
    get(server, target)
    assert [wanted for _, wanted in server.asked] == [None]


def test_a_server_without_ranges_sends_all_of_it(server, target, logged):
    server.ranges = False
    server.cuts = [100_000, 50_000]
    _, pauses = get(server, target, checksum=Checksum("md5", MD5))
    assert pauses == [1.0, 2.0]
    assert sum("from the beginning" in line for line in logged()) == 2


@pytest.mark.parametrize("if_range", [True, False], ids=["obeys If-Range", "ignores If-Range"])
def test_a_file_that_changes_starts_again(server, target, logged, if_range):
    server.if_range = if_range
    cut(server, target, 100_000)
    server.data, server.etag = OTHER, '"two"'
    get(server, target)
    assert any("from the beginning" in line for line in logged())


def test_a_file_that_becomes_shorter_starts_again(server, target):
    cut(server, target, 200_000)
    server.data, server.if_range = save({"a": np.zeros(10)}), False
    server.etag = '"one"'  # the server has not noticed
    _, pauses = get(server, target)
    assert pauses == [1.0]
    assert [wanted for _, wanted in server.asked] == [None, "bytes=200000-", None]


def test_more_than_there_is_was_promised(server, target):
    """The server answers a request for the rest with 416."""
    server.announced = 1000
    _, pauses = get(server, target)
    assert pauses == [1.0]
    assert server.asked[-1][1] == f"bytes={len(DATA)}-"


def test_more_is_promised_for_ever(server, target):
    server.announced, server.ranges = 1000, False
    with pytest.raises(CheckpointError, match=re.escape(f"ended at {len(DATA)} of {len(DATA) + 1000} bytes")) as caught:
        fetch(server.url, target, retries=3, pause=lambda _: None)
    assert "gave up after 4 failures in a row" in str(caught.value)
    assert len(server.asked) == 4
    assert not target.exists()


def test_less_than_there_is_was_promised(server, target):
    server.announced = -1000
    with pytest.raises(CheckpointError, match="is invalid and was deleted") as caught:
        fetch(server.url, target)
    assert "cannot be read as a safetensors file" in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_chunked_answers_are_whole_or_cut(server, target):
    server.chunked, server.cuts = True, [100_000]
    _, pauses = get(server, target)
    assert pauses == [1.0]
    assert server.asked[-1][1] == "bytes=100000-"


def test_redirections_are_followed_with_the_range(server, target):
    server.redirects = {"/models/small.safetensors": "/elsewhere/x"}
    cut(server, target, 80_000)
    get(server, target)
    assert server.asked[-1] == ("/elsewhere/x", "bytes=80000-")


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1:1/x"])
def test_redirections_lead_to_the_web_only(server, target, where):
    server.redirects = {"/models/small.safetensors": where}
    with pytest.raises(CheckpointError, match="cannot fetch"):
        fetch(server.url, target, retries=0)
    assert not target.exists()


def test_a_refusal_is_final(server, target):
    server.status = 404
    with pytest.raises(CheckpointError, match=r"the server answers 404 Not Found;") as caught:
        fetch(server.url, target)
    assert len(server.asked) == 1
    assert "name a mirror with PLSC_MAE_MIRROR=" in str(caught.value)
    assert f"put the file at {target} by hand" in str(caught.value)


def test_a_refusal_of_a_mirror_names_another_one(server, target, monkeypatch):
    server.status = 404
    monkeypatch.setenv(module.MIRROR, server.url.rpartition("/models")[0])
    with pytest.raises(CheckpointError, match="name another mirror with PLSC_MAE_MIRROR="):
        fetch("https://example.org/models/small.safetensors", target)


def test_a_failing_server_is_asked_again(server, target, logged):
    server.errors = [500, 503, 429]
    _, pauses = get(server, target)
    assert pauses == [1.0, 2.0, 4.0]
    assert "the server answers 503 Service Unavailable; retry 2 of 5 in 2 s" in logged()[1]
    server.status = 500
    with pytest.raises(CheckpointError, match="answers 500 Internal Server Error; gave up after 3 failures"):
        fetch(server.url, target.with_name("other"), retries=2, pause=lambda _: None)


def test_nobody_answers(target, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    pauses: list[float] = []
    with pytest.raises(CheckpointError, match="Connection refused; gave up after 8 failures") as caught:
        fetch(f"http://127.0.0.1:{port}/x", target, retries=7, pause=pauses.append)
    assert "PLSC_MAE_MIRROR" in str(caught.value)
    assert str(target) in str(caught.value)  # to be copied there by hand
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_an_unknown_host_is_not_asked_again(server, target, monkeypatch):
    def resolve(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("urllib3.util.connection.allowed_gai_family", resolve)
    pauses: list[float] = []
    with pytest.raises(CheckpointError, match=r"its host is unknown \(Name or service not known\), or there is no net"):
        fetch("https://example.org/x", target, pause=pauses.append)
    assert pauses == []


def test_silence_ends(server, target):
    server.cuts = [1000]
    server.after_answer = lambda: time.sleep(1.0)
    with pytest.raises(CheckpointError, match="timed out"):
        fetch(server.url, target, timeout=0.2, retries=0)


def test_a_web_page_is_refused(server, target):
    server.data = b"<!DOCTYPE html><html>Please log in</html>"
    for checksum in (None, Checksum("md5", MD5[:6])):
        with pytest.raises(CheckpointError, match="web page instead of weights") as caught:
            fetch(server.url, target, checksum=checksum)
        assert server.url in str(caught.value)
        assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checksum": Checksum("md5", "000000")}, f"md5:{MD5}, expected md5:000000"),
        ({"checksum": Checksum("sha256", "f" * 64)}, f"sha256:{SHA256}, expected sha256:ffff"),
        ({"size": 7}, f"has {len(DATA)} bytes, expected 7"),
    ],
)
def test_another_file_than_the_known_one_is_refused(server, target, options, message):
    with pytest.raises(CheckpointError, match="was deleted") as caught:
        fetch(server.url, target, **options)
    assert message in str(caught.value)
    assert list(target.parent.iterdir()) == []
    target.write_bytes(DATA)  # an existing file is not overwritten
    with pytest.raises(CheckpointError, match="remove it to fetch it again") as caught:
        fetch(server.url, target, **options)
    assert message in str(caught.value)
    assert target.read_bytes() == DATA
    assert len(server.asked) == 1


def test_an_interruption_keeps_what_has_arrived(server, target, logged, monkeypatch):
    class Impatient(module.tqdm):
        def update(self, n: float = 1) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "tqdm", Impatient)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, target)
    arrived = partial(target).stat().st_size
    assert 0 < arrived < len(DATA)
    assert "same command again" in logged()[-1]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    get(server, target)
    assert server.asked[-1][1] == f"bytes={arrived}-"


def test_a_full_disk_is_one_sentence(server, target, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        fetch(server.url, target)
    assert not target.exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="choose another --output_dir"):
        fetch(server.url, tmp_path / "file" / "below" / "x")
    assert server.asked == []


def test_a_name_that_is_too_long_is_one_sentence(server, target):
    with pytest.raises(CheckpointError, match=r"cannot write .*name too long"):
        fetch(server.url, target.with_name("a" * 300))


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://example.org/x", "example.org/x", "https:///x", "https://[1/x"]
)
def test_other_addresses_are_refused(url, target):
    with pytest.raises(ConfigError, match=f"{re.escape(url)}: .*https://"):
        fetch(url, target)


def test_a_malformed_mirror_is_refused(server, target, monkeypatch):
    monkeypatch.setenv(module.MIRROR, "http://[1")
    with pytest.raises(ConfigError, match=r"http://\[1: .*https://"):
        fetch(server.url, target)


def test_a_length_of_thousands_of_digits_is_unknown():
    response, unknown = requests.Response(), module._Version("", "")
    response.headers = CaseInsensitiveDict({"Content-Length": "9" * 5000})
    response.status_code = 200
    assert module._answer("https://a/b", response, 0, unknown).total is None
    response.headers = CaseInsensitiveDict({"Content-Range": f"bytes {'9' * 5000}-{'9' * 5000}/*"})
    response.status_code = 206
    assert module._answer("https://a/b", response, 9, unknown) is None


def test_a_mirror_replaces_the_host(server, target, monkeypatch):
    host = server.url.partition("/models")[0]
    monkeypatch.setenv(module.MIRROR, f"{host}/mirror/")
    fetch("https://nowhere.invalid/models/a.pth?x=1", target)
    assert server.asked == [("/mirror/models/a.pth?x=1", None)]
    assert mirrored("https://a/b", "") == "https://a/b"
    assert mirrored("https://a/b", "http://m:8080") == "http://m:8080/b"


def test_a_proxy_of_the_environment_is_used(server, target, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.url.partition("/models")[0])
    fetch("http://nowhere.invalid/small.pth", target)
    assert server.asked == [("http://nowhere.invalid/small.pth", None)]
