"""class_results.json has the newest and the best epoch, whatever happened before, and spares files of the user."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest

from plsc_mae.analysis.class_counts import count_classes
from plsc_mae.commands import classify
from plsc_mae.config import FINETUNE
from plsc_mae.train.class_results import ClassResultsWriter, EpochCounts, read_class_results

NAMES = ["cat", "dog\udcff"]  # a folder's name that is not UTF-8


def epoch(number: int) -> EpochCounts:
    predicted = np.zeros(8, np.int64)
    predicted[: 4 + number] = 1
    return EpochCounts(number, 10 * (number + 1), count_classes(np.repeat([1, 0], 4), predicted, 2))


def write(folder, *epochs: tuple[int, int]) -> None:
    """Write pairs (epoch, best epoch), each with a new writer, as after a resume."""
    for number, best in epochs:
        ClassResultsWriter(folder).write(NAMES, epoch(number), 10 * (best + 1))


@pytest.mark.parametrize(("best", "told"), [(1, "after epoch 1, the best one, "), (2, "after epoch 2, the best one, ")])
def test_the_end_of_a_training_names_missed_classes(tmp_path, caplog, monkeypatch, best, told):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    config = FINETUNE["mae"](output_dir=str(tmp_path))
    classify._warn_of_missed_classes(config)  # a run without results
    for number in (1, 2):
        counts = count_classes(np.repeat([0, 1], 4), np.zeros(8, np.int64), 2)
        ClassResultsWriter(tmp_path).write(
            NAMES, EpochCounts(number, number, counts), min(number, best), np.array([9, 3])
        )
    classify._warn_of_missed_classes(config)
    (message,) = set(caplog.messages)
    assert message.startswith(
        f"{told}no image is classified as 'dog\\xff' (4 images); the classes are unbalanced, 3 to 9 "
    )
    caplog.clear()
    classify._warn_of_missed_classes(dataclasses.replace(config, balance_classes=True))
    assert set(caplog.messages) == {f"{told}no image is classified as 'dog\\xff' (4 images)"}


def test_the_best_epoch_stays(tmp_path):
    write(tmp_path, (0, 0), (1, 1), (2, 1), (3, 1))
    found = read_class_results(tmp_path)
    assert found is not None
    assert list(found.names) == NAMES
    for entry, number in ((found.last, 3), (found.best, 1)):
        assert entry is not None
        assert entry[:2] == epoch(number)[:2]
        for values, expected in zip(entry.counts, epoch(number).counts, strict=True):
            np.testing.assert_array_equal(values, expected)


def test_a_repeated_epoch_ends_with_the_same_file(tmp_path):
    """A run that was killed after epoch 2 became the best one goes on from epoch 1, whose best one is epoch 0."""
    write(tmp_path, (0, 0), (1, 0), (2, 2), (3, 2))
    whole = (tmp_path / "class_results.json").read_bytes()
    write(tmp_path, (1, 0))
    found = read_class_results(tmp_path)
    assert found is not None
    assert found.best is None  # epoch 0 is no longer known
    write(tmp_path, (2, 2), (3, 2))
    assert (tmp_path / "class_results.json").read_bytes() == whole


def test_damaged_files(tmp_path):
    assert read_class_results(tmp_path) is None
    write(tmp_path, (0, 0))
    path = tmp_path / "class_results.json"
    content = json.loads(path.read_text())
    for wrong in (
        {"names": ["cat"]},
        {"names": None},
        {"last": None},
        {"last": content["last"] | {"images": "many"}},
        {"last": content["last"] | {"mistaken_for": [2, -1]}},
        {"best": {}},
        {"training_images": [1]},
        {"training_images": "many"},
    ):
        path.write_text(json.dumps(content | wrong))
        assert read_class_results(tmp_path) is None, wrong
    for text in ("", "[]", "{"):
        path.write_text(text)
        assert read_class_results(tmp_path) is None, text


def test_a_file_of_the_user_is_kept(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    path = tmp_path / "class_results.json"
    path.write_text("mine")
    writer = ClassResultsWriter(tmp_path)
    for number in range(2):
        writer.write(NAMES, epoch(number), 10)
    assert path.read_text() == "mine"
    (record,) = set(caplog.records)  # pytest records it once or twice, depending on the tests before
    message = record.getMessage()
    assert str(path) in message


@pytest.mark.parametrize("number", [0, 3])
def test_the_first_epoch_needs_no_best_one(tmp_path, number):
    ClassResultsWriter(tmp_path).write(NAMES, epoch(number), -1)
    found = read_class_results(tmp_path)
    assert found is not None
    assert found.best is None
