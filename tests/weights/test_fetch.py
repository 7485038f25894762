"""Downloads from a real HTTP server that misbehaves: it cuts connections, lies, ignores and changes its mind."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.weights import fetch as module
from plsc_mae.weights.fetch import fetch, mirrored
from plsc_mae.weights.manifest import Checksum

LARGE = 300_000


def weight_file(seed: int) -> bytes:
    """A small weight file."""
    return save({"a": np.random.default_rng(seed).random((LARGE // 8,), dtype=np.float64)})


DATA, OTHER = weight_file(0), weight_file(1)
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `data` under every path, with the faults that a test asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.etag: str | None = '"one"'
        self.last_modified: str | None = None
        self.ranges = True  # whether it obeys Range
        self.if_range = True  # whether it obeys If-Range
        self.cuts: list[int] = []  # bytes after which the next connections are cut
        self.errors: list[int] = []  # statuses of the next answers
        self.status = 0  # of all answers
        self.announced = 0  # bytes that Content-Length promises beyond, or short of, what is there
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
            pass  # the client has had enough
        server.after_answer()
        return None

    def _head(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


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
def told(caplog, monkeypatch):
    """What has been told so far, line by line."""
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
    """Let a download end early, as an interrupted one does."""
    server.cuts = list(cuts)
    with pytest.raises(CheckpointError, match="gave up after 1 failures"):
        fetch(server.url, target, timeout=5, retries=0)
    assert not target.exists()


@pytest.mark.parametrize(
    ("checksum", "verdict"),
    [
        (None, f"no checksum of it is known; its own is sha256:{SHA256}"),
        (Checksum("md5", MD5), f"its checksum is right, md5:{MD5}"),
        (Checksum("sha256", SHA256), f"its checksum is right, sha256:{SHA256}"),
        (Checksum("md5", MD5[:6]), f"its checksum begins with the digits that are known, md5:{MD5[:6]}"),
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


def test_a_cut_connection_goes_on_where_it_was(server, target, told):
    server.cuts = [100_000, 0, 150_000]
    done, pauses = get(server, target, checksum=Checksum("md5", MD5))
    assert done.downloaded
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=100000-", "bytes=250000-"]
    assert pauses == [1.0, 2.0, 1.0]  # what brings something new starts the count again
    assert len(told()) == 3
    assert f"the connection ended at 100000 of {len(DATA)} bytes; try 1 of 5 in 1 s" in told()[0]


def test_a_later_call_goes_on_too(server, target, told):
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
def test_without_a_version_it_starts_again(server, target, told, etag):
    """Two halves of two files would not be noticed where no checksum is known."""
    server.etag = etag
    cut(server, target, 70_000)
    get(server, target)
    assert server.asked[-1][1] is None
    assert any("starts again" in line for line in told())


def test_an_unknown_partial_file_is_not_continued(server, target):
    target.parent.mkdir()
    partial(target).write_bytes(b"something else")
    get(server, target)
    partial(target).write_bytes(DATA[:1000])
    partial(target).with_name(partial(target).name + ".json").write_text("{broken")
    target.unlink()
    get(server, target)
    assert [wanted for _, wanted in server.asked] == [None, None]


def test_a_server_without_ranges_sends_all_of_it(server, target, told):
    server.ranges = False
    server.cuts = [100_000, 50_000]
    _, pauses = get(server, target, checksum=Checksum("md5", MD5))
    assert pauses == [1.0, 2.0]
    assert sum("starts again" in line for line in told()) == 2


@pytest.mark.parametrize("if_range", [True, False], ids=["obeys If-Range", "ignores If-Range"])
def test_a_file_that_changes_starts_again(server, target, told, if_range):
    server.if_range = if_range
    cut(server, target, 100_000)
    server.data, server.etag = OTHER, '"two"'
    get(server, target)
    assert any("starts again" in line for line in told())


def test_a_file_that_becomes_shorter_starts_again(server, target):
    cut(server, target, 200_000)
    server.data, server.if_range = save({"a": np.zeros(10)}), False
    server.etag = '"one"'  # the server has not noticed
    _, pauses = get(server, target)
    assert pauses == [1.0]
    assert [wanted for _, wanted in server.asked] == [None, "bytes=200000-", None]


def test_more_than_there_is_was_promised(server, target):
    """Asked for the rest, the server says that there is none."""
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
    with pytest.raises(CheckpointError, match="is not what was asked for and was not kept") as caught:
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
    with pytest.raises(CheckpointError, match=r"the server answers 404 Not Found$"):
        fetch(server.url, target)
    assert len(server.asked) == 1


def test_a_failing_server_is_asked_again(server, target, told):
    server.errors = [500, 503, 429]
    _, pauses = get(server, target)
    assert pauses == [1.0, 2.0, 4.0]
    assert "the server answers 503 Service Unavailable; try 2 of 5 in 2 s" in told()[1]
    server.status = 500
    with pytest.raises(CheckpointError, match="answers 500 Internal Server Error; gave up after 3 failures"):
        fetch(server.url, target.with_name("other"), retries=2, pause=lambda _: None)


def test_nobody_answers(target, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    pauses: list[float] = []
    with pytest.raises(CheckpointError, match="Connection refused; gave up after 8 failures"):
        fetch(f"http://127.0.0.1:{port}/x", target, retries=7, pause=pauses.append)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_silence_ends(server, target):
    server.cuts = [1000]
    server.after_answer = lambda: time.sleep(1.0)
    with pytest.raises(CheckpointError, match="timed out"):
        fetch(server.url, target, timeout=0.2, retries=0)


def test_a_web_page_is_refused(server, target):
    server.data = b"<!DOCTYPE html><html>Please log in</html>"
    for checksum in (None, Checksum("md5", MD5[:6])):
        with pytest.raises(CheckpointError, match="holds a web page instead of weights") as caught:
            fetch(server.url, target, checksum=checksum)
        assert str(caught.value).startswith(server.url)
        assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"checksum": Checksum("md5", "000000")}, f"has the checksum md5:{MD5} instead of md5:000000"),
        ({"checksum": Checksum("sha256", "f" * 64)}, f"has the checksum sha256:{SHA256} instead of sha256:ffff"),
        ({"size": 7}, f"has {len(DATA)} bytes instead of 7"),
    ],
)
def test_another_file_than_the_known_one_is_refused(server, target, options, told):
    with pytest.raises(CheckpointError, match="was not kept") as caught:
        fetch(server.url, target, **options)
    assert told in str(caught.value)
    assert list(target.parent.iterdir()) == []
    target.write_bytes(DATA)  # one that is there is not overwritten
    with pytest.raises(CheckpointError, match="remove it to fetch it again") as caught:
        fetch(server.url, target, **options)
    assert told in str(caught.value)
    assert target.read_bytes() == DATA
    assert len(server.asked) == 1


def test_an_interruption_keeps_what_has_arrived(server, target, told, monkeypatch):
    class Impatient(module.tqdm):
        def update(self, n: float = 1) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "tqdm", Impatient)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, target)
    arrived = partial(target).stat().st_size
    assert 0 < arrived < len(DATA)
    assert "the same command goes on from there" in told()[-1]
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


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/x", "example.org/x", "https:///x"])
def test_other_addresses_are_refused(url, target):
    with pytest.raises(ConfigError, match="expected an address that starts with https://"):
        fetch(url, target)


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
