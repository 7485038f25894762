"""Meetings of the processes while process 0 writes tensors that others hold."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import paddle
import pytest

from plsc_mae.parallel import gather
from plsc_mae.parallel.gather import Collection, Holdings, Part


@pytest.mark.parametrize(("limit", "meetings"), [(1 << 24, 1), (8, 3), (1, 5)])
def test_processes_meet_once_for_many_tensors(monkeypatch, limit, meetings):
    """Five tensors of 4 elements are in process 1, one of 8 is here. No tensor is sent right after a write."""
    events = []
    world = SimpleNamespace(process=0, is_main=True, is_gpu=False, tensor=SimpleNamespace(rank=0))
    world.barrier = lambda: events.append("meet")
    theirs = {f"there{i}": [Part(1, (4,), "float32", None)] for i in range(5)}
    monkeypatch.setattr(paddle.distributed, "all_gather_object", lambda found, own: found.extend([own, (0, theirs)]))
    monkeypatch.setattr(paddle.distributed, "broadcast", lambda _tensor, src: events.append(src))
    monkeypatch.setattr(gather, "CHUNK_ELEMENTS", limit)
    for key, array in Collection(Holdings({"here": paddle.ones([8])}, {}), world, scattered=True).items():
        events.append(key)
        assert array.shape == ((8,) if key == "here" else (4,))
    assert [event for event in events if isinstance(event, str) and event != "meet"] == ["here", *theirs]
    assert events.count("meet") == meetings
    assert events.count(1) == 5
    for before, after in itertools.pairwise(events):
        assert not (isinstance(before, str) and before != "meet" and after == 1)
