"""Weight files changed at random, by a seed: a short run of fuzz_reader.py, which detects faults."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture(scope="module")
def fuzzer():
    path = os.path.join(os.path.dirname(__file__), "fuzz_reader.py")
    spec = importlib.util.spec_from_file_location("fuzz_reader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.watch = module.Watch()
    return module


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore")
def test_files_changed_at_random_are_read_or_refused(fuzzer, tmp_path, monkeypatch, capsys, seed):
    monkeypatch.setattr(fuzzer, "MAX_SECONDS", 30)  # the machine may be busy
    fuzzer.warm_up(tmp_path / "warm", fuzzer.watch)
    assert fuzzer.run(150, seed, tmp_path, tmp_path / "findings", fuzzer.watch) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "'refused'" in said
    assert "'read'" in said  # so some mutants reached the tensors


FAULTS = {
    "KeyError": lambda _: {}["key"],
    "effects": lambda _: os.system("true"),
    "effects: .*open": lambda path: path.with_name("marker").write_bytes(b""),
    "seconds": lambda _: time.sleep(0.2),
    "MiB": lambda _: np.ones(1 << 20, np.uint8).sum(),
    "not one short sentence": "two\nlines",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fuzzer, tmp_path, monkeypatch, fault):
    def reading(path):
        act = FAULTS[fault]
        if isinstance(act, str):
            raise fuzzer.CheckpointError(act)
        act(path)
        return SimpleNamespace(tensors={})

    monkeypatch.setattr(fuzzer, "read_file", reading)
    monkeypatch.setattr(fuzzer, "MAX_SECONDS", 0.1 if fault == "seconds" else 60)
    monkeypatch.setattr(fuzzer, "MAX_BYTES", -1 if fault == "MiB" else 1 << 40)
    outcome, message = fuzzer.fault_of(tmp_path / "weights", fuzzer.watch)
    assert outcome == ("refused" if isinstance(FAULTS[fault], str) else "read")
    assert re.search(fault, message)


@pytest.mark.parametrize("name", ["views.pth", "views_legacy_nonzip.pth", "hf_vitmae_model.safetensors", "npz"])
def test_changes_follow_the_seed(fuzzer, name):
    data = fuzzer.seeds()[name]
    first, second = ([fuzzer.mutated(data, random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert len(set(first)) > 10
    assert first == second
