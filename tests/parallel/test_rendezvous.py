"""A process that arrives early waits for the store of process 0."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from plsc_mae.parallel import rendezvous
from plsc_mae.parallel.rendezvous import wait_for_store

pytestmark = pytest.mark.compat


@pytest.fixture
def port(monkeypatch) -> int:
    """Return a free port, the one of the store of two processes on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    monkeypatch.setenv("PADDLE_MASTER", f"127.0.0.1:{number}")
    return number


@pytest.mark.skipif(not rendezvous._SOCKETS[0].exists(), reason="needs the table of sockets of Linux")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_it_waits_until_the_store_listens(port, family):
    begun = []

    def listen(listener: socket.socket) -> None:
        time.sleep(0.1)
        begun.append(True)
        listener.listen()

    try:
        listener = socket.socket(family)
        listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
    except OSError as error:
        pytest.skip(f"no such address here: {error}")
    with listener:
        thread = threading.Thread(target=listen, args=(listener,))
        thread.start()
        wait_for_store(1)
        assert begun
        thread.join()


def test_it_gives_up(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "MAX_WAIT", 0.05)
    wait_for_store(1)


@pytest.mark.parametrize(("process", "here"), [(0, "2"), (2, "2"), (1, "")])
def test_process_0_and_other_machines_do_not_wait(port, monkeypatch, process, here):
    monkeypatch.setattr(rendezvous, "_listens", lambda _: pytest.fail("it waits"))
    if here:
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", here)
    else:
        monkeypatch.delenv("PADDLE_LOCAL_SIZE")
    wait_for_store(process)


def test_variables_of_the_launcher_come_after_those_of_the_user(port, monkeypatch):
    assert rendezvous._store_port() == port
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "4711")
    assert rendezvous._store_port() == 4711
