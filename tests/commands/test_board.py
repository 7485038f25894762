"""`plsc-mae board`: its server, its language, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.commands import board
from plsc_mae.config.runs import BoardConfig
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.train.log.append_file import VisualDLRecords

ROOT = Path(__file__).parents[2]


@pytest.fixture
def busy_port():
    with socket.create_server(("localhost", 0)) as server:
        yield server.getsockname()[1]


def records(folder: Path, name: str, pictures: int = 2) -> None:
    file = VisualDLRecords(folder, name)
    file.keep(lambda *_: True)
    for step in range(pictures):
        file.add_scalars({"loss/loss": 1.0}, step)
        file.add_images({"reconstruction/1": np.zeros((8, 8, 3), np.uint8)}, step)


def test_a_port_in_use_is_refused_if_it_is_given(busy_port, tmp_path, capsys):
    assert main(["board", str(tmp_path), "--port", str(busy_port)]) == 2
    said = capsys.readouterr().err
    assert f"--port {busy_port}" in said
    assert "in use" in said


@pytest.mark.parametrize("host", ["no..host", "300.300.300.300"])
def test_a_host_that_does_not_exist_is_one_sentence(tmp_path, capsys, host):
    assert main(["board", str(tmp_path), "--host", host]) == 2
    said = capsys.readouterr().err
    assert f"--host {host}" in said
    assert "Unknown error" not in said


def test_without_a_port_the_next_free_one_is_taken(busy_port, monkeypatch):
    monkeypatch.setattr(BoardConfig, "first_port", busy_port)
    with board._listen(BoardConfig(runs=("x",))) as listener:
        assert busy_port < listener.getsockname()[1] < busy_port + board.PORTS


def test_a_missing_folder_and_a_missing_package_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no folder .*absent"):
        board.run(BoardConfig(runs=(str(tmp_path / "absent"),)))
    monkeypatch.setitem(sys.modules, "visualdl.server", None)
    with pytest.raises(ConfigError, match=r"visualdl.*pip install visualdl"):
        board.run(BoardConfig(runs=(str(tmp_path),)))
    with pytest.raises(ConfigError, match="board DIR"):
        BoardConfig()


@pytest.mark.parametrize(("locale", "language"), [("zh_CN.UTF-8", "zh"), ("de_DE.UTF-8", "en"), ("C", "en")])
def test_the_language_is_the_locales_or_english(monkeypatch, locale, language):
    monkeypatch.setenv("LC_ALL", locale)
    assert board._language("auto") == language
    assert board._language("zh") == "zh"


@pytest.mark.slow  # imports VisualDL's server, which takes some seconds
def test_it_serves_all_pictures_to_any_browser_and_ends_by_ctrl_c(tmp_path):
    pytest.importorskip("visualdl")
    for name in ("one", "two"):
        records(tmp_path / name, name, pictures=20)
    command = [sys.executable, "-m", "plsc_mae", "board", str(tmp_path / "one"), str(tmp_path / "two")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    killer = threading.Timer(120, process.kill)
    killer.start()
    try:
        url = process.stdout.readline().split(": ")[1].split()[0]

        def get(path: str) -> str:
            request = urllib.request.Request(url.replace("scalar", path), headers={"Accept-Language": "de"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read().decode()

        assert "<html" in get("scalar")
        assert json.loads(get("api/runs"))["data"] == ["one", "two"]
        assert len(json.loads(get("api/image/list?run=one&tag=reconstruction/1"))["data"]) == 20
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        killer.cancel()
        process.kill()
    assert process.returncode == 0, err
    assert out == "stopped\n"
    assert "Traceback" not in err
