"""A process of a run that does one thing: python peer_program.py FOLDER PORT PROCESS PROCESSES DEED ...

Deeds follow one another: sleep, fork a child that sleeps, "refuse" a stranger, "stop" by SIGSTOP, and ends of every
kind. No Paddle.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from plsc_mae.parallel import failure_detector

failure_detector.GRACE, failure_detector.SHORT_GRACE = 1.5, 0.6


class FolderStore:
    """The launcher's store, in files."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def set(self, key: str, value: bytes) -> None:
        path = self.folder / key.replace("/", "_")
        path.with_suffix(".new").write_bytes(value)
        path.with_suffix(".new").rename(path)

    def get(self, key: str) -> bytes:
        path = self.folder / key.replace("/", "_")
        while not path.exists():
            time.sleep(0.01)
        return path.read_bytes()


def fork() -> None:
    """Leave a child behind that would hold inherited connections open."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(90)
        os._exit(0)


def refuse(store: FolderStore) -> None:
    """Let strangers without the token try to take the last process's place."""
    port = int(store.get(failure_detector.KEY).split()[0])
    for token, process in (
        ('"guess"', "2"),
        ('"guess"', '"x"'),
        ('"gu\\u00e9ss"', "2"),
        ('"\\ud800"', "2"),
        ("null", "[]"),
        ("[" * 20000, "2"),
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(f'{{"token": {token}, "process": {process}, "host": "elsewhere"}}\n'.encode())
            assert stranger.recv(100) == b""


def main(folder: str, port: str, process: str, processes: str, *deeds: str) -> int:
    """Join, then do the deeds."""
    store = FolderStore(folder)
    if "late" in deeds:
        time.sleep(0.5)
    failure_detector.join(int(process), int(processes), store, {"PADDLE_MASTER": f"127.0.0.1:{port}"})
    store.set(f"joined/{process}", b"")
    for deed in deeds:
        if deed == "sleep":
            time.sleep(90)
        elif deed == "fork":
            fork()
        elif deed == "refuse":
            refuse(store)
        elif deed == "wait":
            for other in range(int(processes)):  # on a busy machine they start seconds apart
                store.get(f"joined/{other}")
            time.sleep(0.2)
        elif deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif deed == "mistake":
            return failure_detector.end("no such picture", 2)
        elif deed == "bug":
            failure_detector.end_by(KeyError("bug"))
        elif deed == "raise":
            raise KeyError("bug")
        elif deed == "done":
            failure_detector.report_success()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
