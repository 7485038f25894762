"""What counts as a spike, and what is kept of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.train.nonfinite.spikes import MIN_UPDATES, WINDOW, RecentValues, SpikeReport

pytestmark = pytest.mark.compat


def spikes_in(values) -> list[int]:
    course = RecentValues()
    return [number for number, value in enumerate(values) if course.follow(float(value)) is not None]


def test_noise_and_slow_change_are_no_spikes():
    rng = np.random.default_rng(0)
    losses = 0.4 + 0.6 * np.exp(-np.arange(2000) / 300) + 0.01 * rng.standard_normal(2000)
    assert spikes_in(losses) == []
    assert spikes_in(1.5 * losses[::-1]) == []
    norms = np.exp(0.3 * rng.standard_normal(2000))
    assert spikes_in(norms) == []
    assert spikes_in(np.full(200, 0.5)) == []


def test_a_spike_is_far_above_the_usual():
    rng = np.random.default_rng(0)
    losses = 0.5 + 0.01 * rng.standard_normal(300)
    losses[[20, 200]] = 0.8  # at 20 too few have been seen
    assert spikes_in(losses) == [200]
    flat = np.full(MIN_UPDATES + 1, 0.5)
    flat[-1] = 0.54
    assert spikes_in(flat) == []  # within 10 percent
    flat[-1] = 0.56
    assert spikes_in(flat) == [MIN_UPDATES]


def test_a_new_level_is_the_usual_after_a_while():
    levels = np.concatenate([np.full(WINDOW, 1.0), np.full(WINDOW, 5.0)])
    assert spikes_in(levels) == list(range(WINDOW, WINDOW + WINDOW // 2))


def test_lines_of_a_killed_run_from_beyond_its_checkpoint_go(tmp_path):
    path = tmp_path / "spikes.jsonl"
    path.write_bytes(b'{"step": 3}\n{"step": 7}\n[]\n{"what": 1}\n\xff\n{"step": 9, "wh')
    SpikeReport(path, active=False).start(5)
    assert len(path.read_bytes().splitlines()) == 6
    SpikeReport(path, active=True).start(5)
    assert path.read_text() == '{"step": 3}\n'


def test_every_spike_is_written_and_lasting_ones_are_told(tmp_path, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(
        "plsc_mae.train.nonfinite.spikes.logger.warning", lambda _text, _name, _value, step, *_: told.append(step)
    )
    report = SpikeReport(tmp_path / "spikes.jsonl", active=True)
    spikes = [100, *range(110, 112), *range(120, 124), *range(130, 133), *range(250, 254)]
    for step in range(1, 300):
        report.follow(
            step, {"loss": 9.0 if step in spikes else 1.0, "grad_norm": 1.0}, lambda: {"samples": [{"index": 4}]}
        )
    assert told == [122, 252]
    report.follow(600, {"loss": 90.0, "grad_norm": 101.0}, dict)
    assert told == [122, 252, 600]  # a single one, more than 100 times as large as usual
    lines = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*spikes, 600, 600]
    assert lines[0] == {"step": 100, "what": "loss", "value": 9.0, "usual": 1.0, "samples": [{"index": 4}]}


def test_a_report_that_cannot_be_shortened_is_named(tmp_path):
    (tmp_path / "spikes.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"spikes\.jsonl"):
        SpikeReport(tmp_path / "spikes.jsonl", active=True).start(0)
