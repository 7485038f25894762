"""The early hint comes once, to runs that learn nothing, and to no others."""

from __future__ import annotations

import dataclasses
import json
import logging
import types

import numpy as np
import pytest

from plsc_mae.analysis.class_counts import count_classes
from plsc_mae.commands.after_epoch import AfterEpoch, hint_epoch, learns_nothing, loss_of_shares
from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.data.classes import ClassOrder
from plsc_mae.train.checkpoint.state import Progress
from plsc_mae.train.class_results import read_class_results

LABELS = np.repeat([0, 1, 2], 20)
COUNTS = count_classes(LABELS, np.zeros_like(LABELS), 3)  # chance: up to 45.5 %
PLATEAU = [1.12, 1.1, 1.11, 1.1, 1.1]  # log(3) is 1.0986
EQUAL = float(np.log(3))
UNEQUAL = np.repeat([0, 1, 2], [144, 58, 58])
MAJORITY = count_classes(UNEQUAL, np.zeros_like(UNEQUAL), 3)  # class 0: 55.4 %
TO_SHARES = [1.09, 1.04, 1.02, 1.01, 1.01]


def log(trained: list[float], tested: list[float]) -> list[dict[str, float]]:
    return [{"train_loss": a, "test_loss": b} for a, b in zip(trained, tested, strict=True)]


def test_a_run_at_chance_learns_nothing():
    assert learns_nothing(log(PLATEAU, PLATEAU), COUNTS, 33.3, EQUAL)


def test_a_run_that_learns_the_frequencies_of_the_classes_learns_nothing():
    level = loss_of_shares(MAJORITY.images)
    assert level == pytest.approx(0.997, abs=1e-3)
    assert learns_nothing(log(TO_SHARES, TO_SHARES), MAJORITY, 55.4, level)
    for others in ([1.09, 1.04, 1.0, 0.96, 0.96], [1.5, 1.4, 1.2, 1.1, 1.03]):  # below the shares, or on the way
        assert not learns_nothing(log(others, TO_SHARES), MAJORITY, 55.4, level)
    smoothed = loss_of_shares(MAJORITY.images, 0.1)
    assert learns_nothing(log([1.09, 1.04, 1.02, 1.02, 1.02], TO_SHARES), MAJORITY, 55.4, smoothed)


def test_a_balanced_run_is_compared_with_equal_shares():
    """Always answering class 0 has a balanced accuracy of 33.3 %, and the loss falls to log(3), not to the shares."""
    assert learns_nothing(log(PLATEAU, PLATEAU), MAJORITY, 33.3, EQUAL, balanced=True)
    assert not learns_nothing(log(PLATEAU, PLATEAU), MAJORITY, 50.0, EQUAL, balanced=True)
    assert not learns_nothing(log(PLATEAU, TO_SHARES), MAJORITY, 33.3, EQUAL, balanced=True)


def test_the_loss_of_the_shares_is_that_of_training():
    """With label smoothing and mixed labels, no other constant prediction has a lower loss."""
    images = np.array([5, 2, 1, 0])
    rng, labels = np.random.default_rng(0), np.repeat(np.eye(4)[:3], images[:3], axis=0) * 0.9 + 0.1 / 4
    mixed = 0.7 * labels + 0.3 * labels[::-1]
    found = loss_of_shares(images, 0.1)
    assert found == pytest.approx(-np.mean(np.sum(mixed * np.log(mixed.mean(axis=0)), axis=1)))
    for guess in rng.dirichlet(np.ones(4), 50):
        assert -np.mean(np.sum(mixed * np.log(guess), axis=1)) >= found


@pytest.mark.parametrize(
    ("trained", "tested", "best"),
    [
        (PLATEAU, PLATEAU, 50.0),  # more accurate than chance
        (PLATEAU, [1.12, 1.1, 1.09, 1.08, 1.07], 33.3),  # with mixup only the validation loss falls at first
        ([1.12, 1.1, 1.0, 0.9, 0.8], PLATEAU, 33.3),  # learned by heart: a higher rate does not help
        ([1.12, 1.3, 4.0, 3.0, 5.0], [4.0] * 5, 33.3),  # the rate is too high already
        ([float("nan")] * 5, PLATEAU, 33.3),
        ([], [], 33.3),
    ],
)
def test_others_do(trained, tested, best):
    assert not learns_nothing(log(trained, tested), COUNTS, best, EQUAL)


def test_of_images_of_one_class_nothing_is_said():
    counts = count_classes(np.zeros(20, np.int64), np.zeros(20, np.int64), 2)
    assert not learns_nothing(log(PLATEAU, PLATEAU), counts, 100.0, 0.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FINETUNE["mae"](epochs=100), 34),
        (FINETUNE["mae"](epochs=60, warmup_epochs=20.0), 23),
        (FINETUNE["mae"](epochs=50, warmup_epochs=30.0), 0),  # beyond half of the run
        (FINETUNE["mae"](epochs=5, warmup_epochs=0.0), 0),
        (LINPROBE["mae"](epochs=90), 30),
        (FINETUNE["cae"](epochs=100, warmup_steps=350), 38),  # of 10 updates per epoch
    ],
)
def test_the_hint_comes_after_a_third_of_the_run_and_after_the_warmup(config, expected):
    assert hint_epoch(config, 10.0) == expected


def test_the_hint_and_the_results_of_an_epoch(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    config = FINETUNE["mae"](epochs=12, warmup_epochs=1.0, lr=None, blr=1e-3, output_dir=str(tmp_path))
    evaluation = types.SimpleNamespace(counts=None)
    after = AfterEpoch(config, evaluation, ClassOrder(("cat", "dog")), LABELS)
    after(Progress(1, step=10))
    assert read_class_results(tmp_path) is None  # of a sweep
    evaluation.counts = COUNTS
    for epoch, loss in enumerate(PLATEAU, start=1):
        with (tmp_path / "log.txt").open("a") as file:
            file.write(json.dumps({"train_loss": loss, "test_loss": loss}) + "\n")
        after(Progress(epoch, step=10 * epoch, best=33.3, best_step=10))
    (record,) = set(caplog.records)  # pytest records it once or twice, depending on the tests before
    message = record.getMessage()
    for word in ("4 of 12 epochs", "33.3", "45.5", "--blr", "0.01 instead of 0.001", "docs/few-images.md"):
        assert word in message
    found = read_class_results(tmp_path)
    assert found is not None
    assert list(found.names) == ["cat", "dog", "2"]  # --nb_classes 3
    after.config, after.labels = dataclasses.replace(config, balance_classes=True), UNEQUAL
    caplog.clear()
    after(Progress(4, step=40, best=33.3, best_step=10))
    assert "test_balanced_acc 33.3" in caplog.text
    assert (found.last.epoch, found.best.epoch) == (4, 0)
