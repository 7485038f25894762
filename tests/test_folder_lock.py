"""The lock of an output folder: a second run waits for the first, and is refused only while that one is alive."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plsc_mae import folder_lock
from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import parse
from plsc_mae.errors import FolderError
from plsc_mae.folder_lock import LOCK, locked, require_unlocked
from plsc_mae.train.checkpoint.folder import find_start

# A run: it holds the lock, and has a child that outlives it, as loader workers can. Only this module is loaded, so that
# the process starts in an instant.
HOLDER = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
from pathlib import Path
with lock.locked(Path(sys.argv[2]), "--output_dir"):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
os.kill(child, 9)
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds the lock of a folder, and the id of its child."""
    file = Path(sys.modules[locked.__module__].__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, file, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def start(folder: Path):
    return find_start(parse(["--output_dir", str(folder), "--auto_resume"], PRETRAIN, prog="pretrain"))


def hold(folder: Path) -> contextlib.AbstractContextManager[None]:
    return locked(folder, "--output_dir")


def test_a_folder_in_use_is_refused_until_its_run_ends(holder, tmp_path, monkeypatch):
    process, _ = holder
    monkeypatch.setattr(folder_lock, "WAIT", 0.1)
    for attempt in (lambda: start(tmp_path), lambda: hold(tmp_path).__enter__()):
        with pytest.raises(FolderError, match=f"--output_dir {tmp_path}.*process {process.pid} on .*stop it"):
            attempt()
    process.communicate("")
    assert not (tmp_path / LOCK).exists()
    start(tmp_path)
    with hold(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attempt", [start, lambda folder: hold(folder).__enter__()])
def test_a_restarted_run_waits_for_the_end_of_its_predecessor(holder, tmp_path, monkeypatch, caplog, attempt):
    process, _ = holder
    monkeypatch.setattr(folder_lock, "ANNOUNCED", 0.0)
    monkeypatch.setattr(folder_lock, "POLL", 0.01)
    monkeypatch.setattr(folder_lock, "WAIT", 60.0)
    end = threading.Timer(0.05, process.communicate, [""])
    end.start()
    with caplog.at_level("INFO", "plsc_mae"):
        attempt(tmp_path)
    end.join()
    (line,) = caplog.messages
    assert f"{tmp_path} is in use by process {process.pid}" in line
    assert "60 s" in line


def test_a_killed_run_releases_its_folder_although_a_child_lives(holder, tmp_path):
    process, child = holder
    process.kill()
    process.wait()
    os.kill(child, 0)
    assert (tmp_path / LOCK).exists()
    start(tmp_path)
    with hold(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_an_error_releases_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_only_causes_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with hold(tmp_path):
        require_unlocked(tmp_path, "--output_dir")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text


def test_a_file_that_its_owner_removes_in_between_is_opened_again(tmp_path, monkeypatch):
    lockf, path = fcntl.lockf, tmp_path / LOCK

    def end_of_owner(file, kind):
        if path.stat().st_ino == os.fstat(file).st_ino and not stolen:
            stolen.append(os.fstat(file).st_ino)
            path.unlink()
        lockf(file, kind)

    stolen: list[int] = []
    monkeypatch.setattr(fcntl, "lockf", end_of_owner)
    with hold(tmp_path):
        assert path.exists()
    assert stolen


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(FolderError, match=r"gone.*another --output_dir"), hold(tmp_path / "gone"):
        pass
