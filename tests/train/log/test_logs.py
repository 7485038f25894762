"""Logs: no line lost, none twice, whatever the disk and whoever stops the run."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import types

import numpy as np
import pytest

from plsc_mae.train.log.append_file import AppendedFile, JsonLines
from plsc_mae.train.log.run_logger import RunLogger, format_line

pytestmark = pytest.mark.compat


def record(step: int, epoch: int, iteration: int, loss: float = 0.0) -> dict:
    settings = dict.fromkeys(("lr", "min_lr", "weight_decay", "loss_scale", "grad_norm", "images_per_second"), 1.0)
    place = {"epoch": epoch, "iteration": iteration, "step": step}
    return {**place, "loss": loss, **settings, "data_share": 0.0, "memory_gib": 1.0, "time": 1.0}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(folder, start, records, epochs=()):
    log = RunLogger(str(folder), str(folder), active=True)
    log.start(*start)
    for entry in records:
        log.line(entry, total=10, eta=1.0)
    for epoch in epochs:
        log.pictures({"input": np.full((2, 8, 8, 3), epoch, np.uint8)}, epoch)
        log.epoch({"epoch": epoch, "step": 2 * epoch + 2, "train_loss": 0.5}, {"test_acc1": 10.0 * epoch})
    log.sync()


def test_what_lies_beyond_the_checkpoint_is_dropped_and_nothing_else(tmp_path):
    """Epochs of 4 iterations, two to an update; the run was killed far beyond the checkpoint of step 3."""
    reader = pytest.importorskip("visualdl").LogReader
    places = [(step, epoch, i) for epoch in (0, 1, 2) for i, step in ((1, 0), (2, 1), (3, 1), (4, 2))]
    places = [(step + 2 * epoch, epoch, i) for step, epoch, i in places]
    run(tmp_path, (0, 0, 0), [record(*place, loss=1.0) for place in places], epochs=(0, 1, 2))
    records = tmp_path / "vdlrecords.run.log"
    for path, rest in ((records, b"\x40\x00\x00\x00\x00\x00\x00\x00half"), (tmp_path / "train.jsonl", b'{"epo')):
        path.write_bytes(path.read_bytes() + rest)

    run(tmp_path, (3, 1, 2), [record(*place, loss=2.0) for place in places[6:]], epochs=(1, 2))
    found = lines(tmp_path / "train.jsonl")
    assert [(line["step"], line["epoch"], line["iteration"]) for line in found] == places
    assert [line["loss"] for line in found] == [1.0] * 6 + [2.0] * 6
    assert [line["epoch"] for line in lines(tmp_path / "log.txt")] == [0, 1, 2]
    curves = reader(file_path=str(records))
    scalars = curves.get_data("scalar", "train/loss")
    assert [scalar.id for scalar in scalars] == [step for step, _, _ in places]
    assert [scalar.value for scalar in scalars] == [1.0] * 6 + [2.0] * 6
    by_epoch = {"epoch/loss": "scalar", "perf/test_acc1": "scalar", "input/0": "image", "input/1": "image"}
    for tag, kind in by_epoch.items():
        assert [entry.id for entry in curves.get_data(kind, tag)] == [0, 1, 2], tag

    run(tmp_path, (0, 0, 0), [])
    assert (tmp_path / "train.jsonl").read_text() == (tmp_path / "log.txt").read_text() == ""
    assert "scalar" not in reader(file_path=str(records)).get_tags()


def test_lines_wait_in_memory_for_space(tmp_path, monkeypatch, caplog):
    file = JsonLines(tmp_path / "train.jsonl")
    file.add({"step": 1})
    write, room = os.write, [3]

    def write_to_a_full_disk(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, bytes(data)[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write_to_a_full_disk)
    for step in (2, 3):
        file.add({"step": step})
        assert file.path.read_text() == '{"step": 1}\n'  # no half line
    assert not file.sync()
    room[0] = 1000
    assert file.sync()
    assert [line["step"] for line in lines(file.path)] == [1, 2, 3]
    assert not file.pending


def test_shortening_a_log_needs_no_space(tmp_path, monkeypatch):
    file = JsonLines(tmp_path / "log.txt")
    for step in range(5):
        file.add({"step": step})

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AppendedFile, "append", refuse)
    monkeypatch.setattr("plsc_mae.train.log.append_file.replace_content", refuse)
    assert len(file.keep(lambda line: line["step"] < 3)) == 3
    assert [line["step"] for line in lines(file.path)] == [0, 1, 2]


def test_damaged_lines_in_the_middle_go_alone(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\xff{"st\n[3]\n{"step": 2}\n')
    assert JsonLines(path).keep(lambda _: True) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_line_fits_the_terminal(width):
    metrics = {"mlm_acc": 0.02, "top_token_share": 0.375, "loss": 8.135, "loss_main": 4.267, "loss_align": 3.869}
    line = format_line({**record(20, 3, 1234), **metrics}, total=5000, eta=123456.0, width=width)
    assert len(line) < width
    assert line.startswith("epoch 3 [1234/5000] ")
    assert "loss 8.135" in line
    assert "eta 34:17:36" in line
    assert ("loss_main" in line) == (width > 80)


def test_a_line_of_a_file_has_every_number():
    line = format_line(record(20, 3, 7), total=10, eta=1.0, width=None)
    names = ("loss", "lr", "min_lr", "wd", "scale", "grad", "img/s", "data", "mem", "eta")
    assert all(f" {name} " in line for name in names)


def test_every_record_has_the_id_of_its_run(tmp_path):
    log = RunLogger(str(tmp_path), str(tmp_path), active=True)
    log.run = "0123456789ab"
    log.start(0, 0, 0)
    log.print_line(record(1, 0, 1), total=10, eta=1.0)  # the console's alone
    log.line(record(1, 0, 2), total=10, eta=1.0)
    log.epoch({"epoch": 0, "step": 2}, {})
    for name in ("train.jsonl", "log.txt"):
        assert [line["run"] for line in lines(tmp_path / name)] == ["0123456789ab"]


class Unsuitable(types.ModuleType):
    """A visualdl that an unsuitable protobuf breaks at its import."""

    def __getattr__(self, name: str) -> None:
        raise TypeError("Descriptors cannot be\ncreated directly")


@pytest.mark.parametrize("module", [None, Unsuitable("visualdl.component")])
def test_a_run_goes_on_without_visualdl(tmp_path, caplog, monkeypatch, module):
    """Not installed, or broken: one warning, and the other logs are complete."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    monkeypatch.setitem(sys.modules, "visualdl.component", module)
    run(tmp_path, (0, 0, 0), [record(0, 0, 1), record(1, 0, 2)], epochs=(0,))
    (warning,) = {entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING}
    assert "visualdl" in warning
    assert "train.jsonl" in warning
    assert module is None or "Descriptors cannot be created directly" in warning
    assert len(lines(tmp_path / "train.jsonl")) == 2
    assert len(lines(tmp_path / "log.txt")) == 1
    assert not list(tmp_path.glob("vdlrecords*"))
