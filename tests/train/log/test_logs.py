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

from plsc_mae import console
from plsc_mae.errors import ConfigError
from plsc_mae.train.log.append_file import AppendedFile, JsonLines, VisualDLRecords
from plsc_mae.train.log.boards import RunOptions
from plsc_mae.train.log.run_logger import RunLogger, format_epoch, format_line
from plsc_mae.train.log.tags import epoch_tags, line_tags

pytestmark = pytest.mark.compat


DESCRIBED = RunOptions("tiny", {"changed": {"lr": "0.1"}, "Data": {"data_path": "x"}}, {"lr": 0.1, "epochs": 3}, 3)


def record(step: int, epoch: int, iteration: int, loss: float = 0.0) -> dict:
    settings = dict.fromkeys(("lr", "min_lr", "weight_decay", "loss_scale", "grad_norm", "images_per_second"), 1.0)
    place = {"epoch": epoch, "iteration": iteration, "step": step}
    return {**place, "loss": loss, **settings, "data_share": 0.0, "memory_gib": 1.0, "time": 1.0}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(folder, start, records, epochs=()):
    log = RunLogger(str(folder), str(folder), active=True, described=DESCRIBED)
    log.run = "0123456789ab"
    log.start(*start)
    if not start[0]:
        log.pictures({"reconstruction/1": np.zeros((8, 8, 3), np.uint8)}, 0)
    for entry in records:
        log.line(entry, total=10, eta=1.0)
    for epoch in epochs:
        step = 2 * epoch + 2
        log.histograms({"gradients/head": np.full(3, epoch, np.float32)}, step)
        log.pictures({f"reconstruction/{i}": np.full((8, 8, 3), epoch, np.uint8) for i in (1, 2)}, step)
        log.epoch({"epoch": epoch, "step": step, "train_loss": 0.5, "train_lr": 0.1}, {"test_acc1": 10.0 * epoch})
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
    scalars = curves.get_data("scalar", "loss/loss")
    assert [scalar.id for scalar in scalars] == [step for step, _, _ in places]
    assert [scalar.value for scalar in scalars] == [1.0] * 6 + [2.0] * 6
    tags = {"loss/loss_by_epoch": "scalar", "metrics/test_acc1": "scalar", "reconstruction/2": "image"}
    for tag, kind in {**tags, "gradients/head": "histogram"}.items():
        assert [entry.id for entry in curves.get_data(kind, tag)] == [2, 4, 6], tag
    assert [entry.id for entry in curves.get_data("image", "reconstruction/1")] == [0, 2, 4, 6]
    assert [entry.text.encoded_text_string for entry in curves.get_data("text", "config/changed")] == ["lr = 0.1"]
    (row,) = curves.get_data("hyper_parameters", "hparam")
    assert [info.name for info in row.hparam.hparamInfos] == ["lr", "epochs"]
    assert [info.name for info in row.hparam.metricInfos] == ["loss/loss_by_epoch", "metrics/test_acc1"]
    (first,) = curves.get_data("meta_data", "meta_data_tag")
    assert first.meta_data.display_name == "tiny 0123"

    run(tmp_path, (0, 0, 0), [])
    assert (tmp_path / "train.jsonl").read_text() == (tmp_path / "log.txt").read_text() == ""
    tags = reader(file_path=str(records)).get_tags()
    assert "scalar" not in tags
    assert tags["image"] == ["reconstruction/1"]


def test_records_with_earlier_tags_are_cut_at_the_same_position(tmp_path):
    """Earlier versions wrote train/* by updates, and epoch/*, perf/* and captions by epochs, counted from 0."""
    reader = pytest.importorskip("visualdl").LogReader
    run(tmp_path, (0, 0, 0), [record(2, 0, 4), record(4, 1, 4)], epochs=(0, 1))
    old = VisualDLRecords(tmp_path)
    for step in range(1, 6):
        old.add_scalars({"train/loss": 1.0}, step)
    for epoch in range(3):
        old.add_scalars({"epoch/loss": 1.0, "perf/knn_acc1": 1.0}, epoch)
        old.add_images({"original | masked/0": np.zeros((8, 8, 3), np.uint8)}, epoch)
    run(tmp_path, (4, 2, 0), [])
    curves = reader(file_path=str(old.path))
    assert [entry.id for entry in curves.get_data("scalar", "train/loss")] == [1, 2, 3, 4]
    for tag in ("epoch/loss", "perf/knn_acc1"):
        assert [entry.id for entry in curves.get_data("scalar", tag)] == [0, 1]
    assert [entry.id for entry in curves.get_data("image", "original | masked/0")] == [0, 1]
    assert [entry.id for entry in curves.get_data("scalar", "loss/loss_by_epoch")] == [2, 4]


def test_the_epoch_that_a_stop_interrupted_at_its_end_is_written_once(tmp_path):
    """At step 4 all updates of epoch 1 are done, its record is not: another start writes it."""
    reader = pytest.importorskip("visualdl").LogReader
    run(tmp_path, (0, 0, 0), [record(2, 0, 4), record(4, 1, 4)], epochs=(0, 1))
    run(tmp_path, (4, 1, 4), [], epochs=(1,))
    curves = reader(file_path=str(tmp_path / "vdlrecords.run.log"))
    for tag in ("loss/loss", "loss/loss_by_epoch", "metrics/test_acc1"):
        assert [entry.id for entry in curves.get_data("scalar", tag)] == [2, 4], tag
    assert [entry.id for entry in curves.get_data("image", "reconstruction/2")] == [2, 4]


def test_the_first_group_of_charts_is_the_loss(tmp_path):
    """VisualDL sorts groups by name and opens only the first one."""
    values = {**record(1, 0, 1), "mlm_acc": 0.1, "online_acc1": 10.0, "skipped_updates": 1}
    observed = {"test_acc1": 50.0, "knn_acc1": 50.0, "feature_rank": 3.0}
    tags = list(line_tags(values)) + list(epoch_tags({"train_loss": 1.0, "train_lr": 0.1, "epoch": 0}, observed))
    assert min(tags).startswith("loss/")
    assert next(iter(line_tags(values))) == "loss/loss"
    expected = "loss/loss_by_epoch loss/mlm_acc probe/online_acc1 optim/lr optim/skipped_updates speed/time"
    assert set(expected.split()) < set(tags)
    assert {"metrics/test_acc1", "metrics/knn_acc1", "representation/feature_rank"} < set(tags)


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_board_without_its_package_is_refused_before_training(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{name} .*{package}.*pip install {package}"):
        RunLogger(str(tmp_path), str(tmp_path), active=True, loggers=(name,))


def test_boards_get_the_same_records(tmp_path, monkeypatch):
    calls = []

    class Package(types.ModuleType):
        """Stands for tensorboardX and wandb: records the calls of its objects."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *given, **named: calls.append((name, given, named)) or self

    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, Package(name))
    log = RunLogger(str(tmp_path), str(tmp_path), active=True, loggers=("tensorboard", "wandb"), described=DESCRIBED)
    log.run = "0123456789ab"
    log.start(0, 0, 0)
    log.line(record(1, 0, 1), total=10, eta=1.0)
    log.pictures({"reconstruction/1": np.zeros((8, 8, 3), np.uint8)}, 1)
    log.histograms({"gradients/head": np.zeros(3, np.float32)}, 1)
    log.epoch({"epoch": 0, "step": 1, "train_loss": 0.5}, {"test_acc1": 50.0, "test_acc5": 100.0}, ["test_acc5"])
    log.sync()
    log.close()
    shown = [given for name, given, _ in calls if name == "add_scalar"]
    assert ("metrics/test_acc1", 50.0, 1) in shown
    assert "acc5" not in str(calls)
    assert lines(tmp_path / "log.txt")[0]["test_acc5"] == 100.0
    said = {name: (given, named) for name, given, named in calls}
    assert said["SummaryWriter"][1] == {"purge_step": 0}
    assert said["init"][1]["id"] == "0123456789ab"
    assert said["init"][1]["config"]["lr"] == 0.1
    assert {"add_scalar", "add_image", "add_histogram", "add_text", "log", "Image", "Histogram"} <= set(said)
    assert {"flush", "close", "finish"} <= set(said)
    assert not list(tmp_path.glob("vdlrecords*"))


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


SETTINGS = {"min_lr": "min_lr", "weight_decay": "wd", "loss_scale": "scale"}


@pytest.mark.parametrize("changed", [(), *((name,) for name in SETTINGS), tuple(SETTINGS)])
def test_a_line_of_a_file_has_every_number_that_says_something(changed):
    """Settings that are the same in all lines, or the same as another number, are left out."""
    values = {**record(20, 3, 7), **dict.fromkeys(changed, 0.5)}
    line = format_line(values, total=10, eta=1.0, width=None, weight_decay=1.0)
    assert all(f" {name} " in line for name in ("loss", "lr", "grad", "img/s", "data", "mem", "eta"))
    assert [name for name, label in SETTINGS.items() if f" {label} " in line] == list(changed)


@pytest.mark.parametrize("width", [None, 60, 120])
def test_the_line_of_an_epoch_has_loss_accuracy_and_time_to_the_end(width):
    means = {"train_lr": 1e-3, "train_loss_scale": 1.0, "train_loss": 1.297, "train_mlm_acc": 0.02}
    times = {"time": 61.0, "eta": 3600.0}
    line = format_epoch({"epoch": 8, "step": 27, **means}, {"test_acc1": 87.5}, times, epochs=10, width=width)
    assert line.startswith("epoch 8 done (9/10): ")
    assert all(f" {part}" in line for part in ("loss 1.297", "test_acc1 87.5", "eta 1:00:00"))
    assert ("mlm_acc 0.02" in line) == (width != 60)
    assert "loss_scale" not in line
    assert width is None or len(line) < width


def test_the_bar_of_an_epoch_starts_with_the_text_of_the_last(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    monkeypatch.setattr(console, "is_watched", lambda: True)
    log = RunLogger(str(tmp_path), str(tmp_path), active=True)
    log.start_epoch(0, 2, 0)
    log.line(record(2, 0, 2, loss=0.5), total=2, eta=1.0)
    log.end_epoch()
    capsys.readouterr()
    log.start_epoch(1, 2, 0)
    log.close()
    assert "0/2, loss 0.5, 1.0 img/s, run ends in 0:00:01" in capsys.readouterr().err


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
