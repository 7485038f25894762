"""What is seen of the representation between epochs is what the evaluation commands see of the checkpoint."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from plsc_mae.analysis.health import feature_health
from plsc_mae.analysis.knn import knn_accuracy
from plsc_mae.cli import main

pytestmark = pytest.mark.compat
WATCHED = {"feature_rank", "feature_std", "feature_uniformity", "feature_cosine", "feature_alignment"}
WATCHED |= {"fixed_loss", "fixed_loss_to_trivial"}
SEEN = {"knn_acc1", "feature_rank", "feature_std", "feature_uniformity", "feature_cosine"}


def epochs(run, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.folder / name / "log.txt").read_text().splitlines()]


@pytest.fixture
def lists(shades, tmp_path):
    """Write list files of 40 training and all 20 validation images; return the options that name them."""
    for split in ("train", "val"):
        classes = sorted((shades / split).iterdir())
        rows = [f"{path} {label}" for label, folder in enumerate(classes) for path in sorted(folder.iterdir())[:20]]
        (tmp_path / f"{split}.txt").write_text("\n".join(rows))
    return f"--data_path {tmp_path}/train.txt --eval_data_path {tmp_path}/val.txt"


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("run", ["mae", "cae", pytest.param("simmim", marks=pytest.mark.slow)], indirect=True)
def test_it_sees_what_the_knn_command_sees(run, lists):
    """Of the final checkpoint, with the options that give the same features: equal but for the order of sums."""
    flags = f"--batch_size 10 --epochs 3 {lists} --knn_k 5"
    plain = run.here("plain", f"{flags} --knn_freq 4")
    watched = run.here("watched", f"{flags} --knn_freq 2")
    assert [record["loss"] for record in watched] == [record["loss"] for record in plain]
    assert [set(line) >= SEEN for line in epochs(run, "plain")] == [False, False, True]
    lines = epochs(run, "watched")
    assert [set(line) >= SEEN for line in lines] == [False, True, True]  # every second epoch and the last one
    model = f"--model_path {run.folder}/watched/checkpoint-2.pd {lists} --num_workers 0"
    same = "--norm --interpolation bicubic --crop_pct 1 --nb_knn 5"
    assert main(["knn", *f"{model} {same} --save_path {run.folder}/knn".split()]) == 0
    with np.load(run.folder / "knn/train.npz") as bank, np.load(run.folder / "knn/val.npz") as val:
        accuracy = knn_accuracy(bank["features"], bank["labels"], val["features"], val["labels"], [5])[0].top1
        expected = {"knn_acc1": accuracy, **feature_health(val["features"])}
    assert set(expected) == SEEN
    assert accuracy == 80.0  # of each class, 2 of 10 images lie in the wrong folder
    assert {name: lines[-1][name] for name in SEEN} == pytest.approx(expected, rel=1e-4)
    assert lines[1]["feature_rank"] != lines[2]["feature_rank"]


@pytest.fixture
def flat(run, tmp_path):
    """Copy 24 training images to a folder without classes; return the option that names it."""
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(run.images.glob("train/*/*.jpg"))[::5]):
        shutil.copy(path, tmp_path / f"flat/{number:02d}.jpg")
    return f"--data_path {tmp_path}/flat"


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize(
    "run", ["cae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mae", "simmim"))], indirect=True
)
def test_images_without_labels_are_watched_without_a_trace_in_the_training(run, flat):
    flags = f"--batch_size 12 --epochs 3 {flat}"
    plain = run.here("plain", flags)
    watched = run.here("watched", f"{flags} --feature_freq 2")
    assert [record["loss"] for record in watched] == [record["loss"] for record in plain]
    lines = epochs(run, "watched")
    assert [set(line) >= WATCHED for line in lines] == [False, True, True]  # every second epoch and the last one
    same = "--interpolation bicubic --crop_pct 1 --tokens mean --num_workers 0"
    assert main(f"extract --model_path {run.folder}/watched/checkpoint-2.pd {flat} {same} "
                f"--save_path {run.folder}/x.npz".split()) == 0  # fmt: skip
    with np.load(run.folder / "x.npz") as file:
        expected = feature_health(file["layer2/mean"])
    assert {name: lines[-1][name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert 0 < lines[-1]["feature_alignment"] < 2 - 2 * lines[-1]["feature_cosine"]  # views of one image are more alike
    assert lines[-1]["fixed_loss"] == pytest.approx(lines[-1]["train_loss"], rel=1)
    best = min(json.loads((run.folder / "watched/trivial_losses.json").read_text())["losses"].values())
    assert lines[-1]["fixed_loss"] / lines[-1]["fixed_loss_to_trivial"] == pytest.approx(best, rel=0.3)  # other masks


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_two_processes_see_what_one_sees(run, flat):
    """To 1e-3, because updates of two processes sum gradients in another order."""
    flags = f"--epochs 1 --warmup_epochs 0 --drop_path 0 {flat} --feature_freq 1"
    run.here("one", f"{flags} --batch_size 12")
    run.elsewhere("two", f"{flags} --batch_size 6", 2)
    one, two = (epochs(run, name)[-1] for name in ("one", "two"))
    assert {name: two[name] for name in WATCHED} == pytest.approx({name: one[name] for name in WATCHED}, rel=1e-3)


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_with_labels_both_observers_measure_once_on_the_validation_images(run, capsys):
    run.here("both", "--batch_size 60 --epochs 1 --warmup_epochs 0 --knn_freq 1 --knn_k 5 --feature_freq 1")
    assert set(epochs(run, "both")[0]) >= SEEN | WATCHED
    assert capsys.readouterr().out.count("feature_rank 1: collapsed") == 1


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_broken_image_does_not_end_a_run_that_skips_such(run, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(run.images / split, tmp_path / "data" / split)
        next((tmp_path / "data" / split / "ring").iterdir()).write_bytes(b"no image")
    run.here("skip", f"--batch_size 30 --epochs 1 --warmup_epochs 0 --knn_freq 1 --knn_k 5 --bad_image skip "
             f"--data_path {tmp_path}/data")  # fmt: skip
    assert set(epochs(run, "skip")[0]) >= SEEN


@pytest.fixture
def place(run, tmp_path):
    """Folders that do not do: `flat` has no classes, `other` an unknown class, `single` one image, `noval` no val/."""
    shutil.copytree(run.images / "val", tmp_path / "other")
    shutil.move(tmp_path / "other/ring", tmp_path / "flat")
    shutil.move(tmp_path / "other/star", tmp_path / "other/starfish")
    for split in ("train", "val"):
        (tmp_path / "single" / split / "ring").mkdir(parents=True)
        shutil.copy(next((run.images / split / "ring").iterdir()), tmp_path / "single" / split / "ring")
    shutil.copytree(tmp_path / "single/train", tmp_path / "noval/train")
    (tmp_path / "noval/test").mkdir()
    return tmp_path


@pytest.mark.parametrize("run", ["mae"], indirect=True)
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            "--data_path DATA/train",
            "train has no folders train/ and val/; set --eval_data_path",
        ),
        ("--data_path PLACE/noval", "noval has train/ but no val/ (but test/); set --eval_data_path"),
        ("--eval_data_path PLACE/flat", "flat have no classes"),
        ("--data_path PLACE/flat --eval_data_path DATA/val", "flat have no classes"),
        ("--eval_data_path PLACE/other", "'starfish'"),
        ("--knn_max_images 9", "--knn_max_images 9 is fewer than the 10 classes of "),
        ("--knn_k 121", "--knn_k 121 asks for more neighbors than the 120 images of the bank"),
        ("--knn_max_images 40", "--knn_k 50 asks for more neighbors than the 40 images of the bank"),
        ("--data_path PLACE/single", "val has 1 image; --knn_freq needs two or more"),
        ("--knn_freq 0 --eval_data_path DATA/val", "--eval_data_path has no effect without --knn_freq"),
        ("--knn_freq 0 --feature_freq 1 --data_path PLACE/single/train", "1 image; --feature_freq needs two or more"),
    ],
)
def test_mistakes_are_told_before_training(run, place, flags, told, capsys):
    flags = flags.replace("DATA", str(run.images)).replace("PLACE", str(place))
    assert main(["pretrain", *run.arguments("wrong", f"--batch_size 1 --knn_freq 1 --knn_k 50 {flags}")]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (run.folder / "wrong").exists()
