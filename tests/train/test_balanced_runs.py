"""--balance_classes as runs: every class is drawn equally often, exactly again after a resume, and chooses the best."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.data.cifar import CifarDataset
from plsc_mae.data.imagefolder import ImageDataset
from plsc_mae.train.checkpoint.file import load
from plsc_mae.train.class_results import read_class_results

pytestmark = [pytest.mark.compat, pytest.mark.long]
CLASSES, COMMON, RARE = 10, 12, 3  # of the classes, the first two are common: 48 images


@pytest.fixture(scope="module")
def unbalanced(images, tmp_path_factory) -> Path:
    """Write lists of 48 training images, JPEG files, and of the 20 validation images."""
    folder = tmp_path_factory.mktemp("unbalanced")
    for split in ("train", "val"):
        lines = []
        for number, name in enumerate(sorted(path.name for path in (images / split).iterdir())):
            files = sorted((images / split / name).glob("*.jpg"))[: COMMON if number < 2 else RARE]
            lines += [f"{file} {number}\n" for file in files]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def drawn(monkeypatch) -> dict[int, Counter]:
    """Count the draws of every class by epoch, as the training data set gets them."""
    found: dict[int, Counter] = {}
    for cls in (ImageDataset, CifarDataset):
        read = cls.__getitem__

        def counting(self, key, read=read):
            found.setdefault(key.epoch, Counter())[int(self.images.labels[key.index])] += 1
            return read(self, key)

        monkeypatch.setattr(cls, "__getitem__", counting)
    return found


def flags(unbalanced: Path, more: str = "") -> str:
    return f"--data_path {unbalanced} --batch_size 12 --balance_classes --epochs 3 {more}"


def log(run, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.folder / name / "log.txt").read_text().splitlines()]


def assert_balanced(found: dict[int, Counter], images: int) -> None:
    for counts in found.values():
        assert sum(counts.values()) == images
        assert set(counts.values()) <= {images // CLASSES, -(-images // CLASSES)}
        assert len(counts) == CLASSES


def test_a_balanced_run_goes_on_exactly(classifier, unbalanced, drawn, capfd):
    whole = classifier.here("whole", flags(unbalanced))
    assert sorted(drawn) == [0, 1, 2]
    assert_balanced(drawn, 48)
    shown = capfd.readouterr().out
    assert "48 images, 4 updates per epoch; each class drawn equally often (3 to 12 images)" in shown
    assert "test_balanced_acc chooses checkpoint-best.pd" in shown
    classifier.here("cut", flags(unbalanced, "--max_train_step 6"))
    rest = classifier.here("cut", flags(unbalanced, "--auto_resume --num_workers 2"))
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]
    classifier.assert_same("whole", "cut")
    assert "balance_classes: true" in (classifier.folder / "whole/config.yaml").read_text()


@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_balanced_accuracy_chooses_the_best_checkpoint(classifier, unbalanced):
    classifier.here("run", flags(unbalanced, "--blr 0.1"))
    lines = log(classifier, "run")
    found = read_class_results(classifier.folder / "run")
    recalls = [c / n for c, n in zip(found.best.counts.correct, found.best.counts.images, strict=True)]
    best = max(line["test_balanced_acc"] for line in lines)
    assert 100 * np.mean(recalls) == pytest.approx(best, abs=1e-3)
    stored = load(classifier.folder / "run/checkpoint-best.pd")
    assert stored.meta["best"] == pytest.approx(best, abs=1e-3)
    assert stored.meta["epoch"] == [line["test_balanced_acc"] for line in lines].index(best)
    assert "ema_test_balanced_acc" in lines[-1]
    classifier.here("plain", flags(unbalanced, "--no_balance_classes --max_train_step 4"))
    assert not any("balanced" in name for name in log(classifier, "plain")[-1])


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_two_processes_draw_what_one_draws(classifier, unbalanced):
    more = "--opt sgd --lr 0.1 --blr none --max_train_step 4"
    one = classifier.here("one", flags(unbalanced, more))
    two = classifier.elsewhere("two", flags(unbalanced, more).replace("--batch_size 12", "--batch_size 6"), 2)
    for name in ("one", "two"):
        assert "test_balanced_acc" in log(classifier, name)[-1]
    assert len(one) == len(two)
    stored = [load(classifier.folder / name / "checkpoint-0.pd").meta["position"] for name in ("one", "two")]
    assert stored[0] == stored[1]


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_repeats_of_an_image_have_other_crops(classifier, unbalanced, monkeypatch):
    crops: dict[tuple[int, int], set[bytes]] = {}
    draws: Counter = Counter()
    read = ImageDataset.__getitem__

    def keeping(self, key):
        sample = read(self, key)
        crops.setdefault(key[:2], set()).add(sample["image"].tobytes())
        draws[key[:2]] += 1
        return sample

    monkeypatch.setattr(ImageDataset, "__getitem__", keeping)
    classifier.here("run", flags(unbalanced, "--max_train_step 4"))
    assert max(draws.values()) > 1
    assert {key: len(seen) for key, seen in crops.items()} == dict(draws)


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_balanced_features_archives_and_fractions(classifier, unbalanced, images, archives, drawn, tmp_path, capfd):
    cached = classifier.here("cached", flags(unbalanced, "--cache_features"))
    assert "each class drawn equally often (3 to 12 images)" in capfd.readouterr().out
    plain = classifier.here("plain", flags(unbalanced, "--cache_features --no_balance_classes"))
    assert [record["loss"] for record in cached] != [record["loss"] for record in plain]
    assert not drawn
    classifier.here("half", flags(unbalanced, "--train_fraction 0.5 --batch_size 4 --max_train_step 7"))
    assert_balanced(drawn, 28)  # 6, 6 and eight times 2
    drawn.clear()
    for split in ("train", "val"):
        archives.write_shards(images / split, tmp_path / "shards" / split, 1)
    classifier.here("packed", f"--data_path {tmp_path / 'shards'} --batch_size 12 --balance_classes --epochs 1")
    assert_balanced(drawn, 120)
    assert "each class drawn equally often (12 images)" in capfd.readouterr().out
    classifier.here("sweep", flags(unbalanced, "--lr_sweep 0.1 1"))
    assert "chooses checkpoint-best.pd" not in capfd.readouterr().out
    assert "test_acc1_lr0.1" in log(classifier, "sweep")[-1]


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_where_classes_cannot_be_balanced(classifier, unbalanced, capsys):
    classifier.here("run", flags(unbalanced, "--max_train_step 1"))
    file = classifier.folder / "run/checkpoint-latest.pd"
    capsys.readouterr()
    for more, words in (
        ("--task multilabel", ("--balance_classes", "--task multilabel has none", "leave it out")),
        ("--task regression", ("--balance_classes", "--task regression has none")),
        (f"--no_balance_classes --resume {file}", (str(file), "with --balance_classes", "give it", "--finetune")),
    ):
        assert main(["finetune", *classifier.arguments("x", flags(unbalanced, more))]) == 2, more
        message = capsys.readouterr().err.splitlines()[-1]
        for word in words:
            assert word in message
    assert main(["pretrain", "--data_path", str(unbalanced), "--balance_classes"]) == 2
    assert "--balance_classes" in capsys.readouterr().err
