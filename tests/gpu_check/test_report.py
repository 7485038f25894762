"""The report is JSON and has no names of users, machines or folders."""

from __future__ import annotations

import getpass
import json
import math
import socket

import pytest

from plsc_mae.gpu_check.report import anonymous, as_json, build_report
from plsc_mae.gpu_check.results import Result

pytestmark = pytest.mark.compat


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("File '/home/jo/env/lib/paddle/a.py', line 3", "File 'a.py', line 3"),
        ("cannot write /scratch/jo/run: full", "cannot write PATH: full"),
        ("/home/jo/", "PATH"),
        ("~/data/x.json and C:\\Users\\jo\\y.txt", "x.json and y.txt"),
        ("318 images/s, 1 / 3, float32/float64", "318 images/s, 1 / 3, float32/float64"),
    ],
)
def test_paths_become_names_of_files(text, expected):
    assert anonymous(text) == expected


def test_names_of_user_and_machine(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "josephine")
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")
    assert anonymous("josephine on node-17") == "USER on HOST"
    monkeypatch.setattr(getpass, "getuser", lambda: "al")
    assert anonymous("al in balance") == "al in balance"

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert anonymous("a text") == "a text"


def test_a_report_is_json_with_all_results():
    results = [
        Result("speed", "ok", "fast", {"mae images/s": 400.0, "worst": math.inf}, 9.0),
        Result("copies", "failed", "RuntimeError: /home/jo/lib.so", {}),
    ]
    report = json.loads(as_json(build_report(results, gpu=True, gpus=["NVIDIA A100"], driver="550.54")))
    assert report["measured_on_gpu"] is True
    assert report["gpus"] == ["NVIDIA A100"]
    assert report["checks"][0]["numbers"] == {"mae images/s": 400.0, "worst": "inf"}
    assert report["checks"][1]["summary"] == "RuntimeError: lib.so"
    assert {"paddle", "cuda", "plsc_mae"} < set(report["versions"])
