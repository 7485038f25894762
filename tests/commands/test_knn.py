"""k-NN accuracies of features, of random weights and of raw pixels; kept features; processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[2]
FEW = "--nb_knn 1 10 --num_workers 0"  # the bank has 30 images


@pytest.fixture
def classify(capfd):
    """Run the command; gives the exit code, stdout and stderr."""

    def run(flags: str) -> tuple[int, str, str]:
        capfd.readouterr()  # of the training
        code = main(["knn", *flags.split()])
        return code, *capfd.readouterr()

    return run


def table(out: str) -> list[list[float]]:
    """The rows `k top1 top5` that were printed."""
    return [[float(x) for x in line.split()] for line in out.split("top-5\n")[1].splitlines()]


def test_accuracies_are_printed_and_kept(trained, images, classify, tmp_path, capfd):
    model = trained() / "checkpoint-1.pd"
    capfd.readouterr()
    code, out, err = classify(f"--model_path {model} --data_path {images} {FEW} --save_path {tmp_path}/knn")
    assert (code, err) == (0, "")
    first, second, third = out.splitlines()[:3]
    assert first.startswith(f"{model}: ")
    assert second == "30 images in the bank, 10 queries, 32 features, 10 classes: chance 10.0 %"
    assert third.endswith("is right for 10.0 % of the 10 validation images")
    rows = table(out)
    assert [row[0] for row in rows] == [1, 10]
    assert rows[0][1] == rows[0][2]  # one neighbor names one class
    with np.load(tmp_path / "knn/train.npz") as bank:
        assert bank["features"].shape == (30, 32)
        np.testing.assert_array_equal(bank["labels"], np.repeat(np.arange(10), 3))
    code, again, _ = classify(f"--load_path {tmp_path}/knn {FEW} --save_path {tmp_path}/knn")
    assert code == 0
    assert table(again) == rows
    lines = (tmp_path / "knn/output.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith(">>")] == [f">> {first}", f">> {tmp_path}/knn"]
    assert [float(x) for x in lines[1].split("\t")] == rows[0]


def test_the_names_of_the_classes_are_told_once(images, classify, tmp_path, capfd):
    assert main(["split", str(images / "train"), str(tmp_path / "lists")]) == 0
    capfd.readouterr()
    code, out, _ = classify(f"--pixels --input_size 16 --data_path {tmp_path}/lists {FEW}")
    assert code == 0
    assert out.count("the classes are named by") == 1


def test_the_default_shrinks_with_the_set_and_five_classes_have_no_top5(tmp_path, classify):
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("val", 6)):
        features = {"features": rng.standard_normal((count, 4)).astype(np.float32), "labels": np.arange(count) % 3}
        np.savez(tmp_path / f"{name}.npz", **features)
    code, out, err = classify(f"--load_path {tmp_path}")
    assert code == 0
    assert "k = 10, 20:" in out + err
    assert "100, 200 exceeds the bank of 30" in out + err
    assert "always answering '0', as frequent as 2 other classes, is right for 33.3 % of the 6" in out  # without names
    head, *rows = out.splitlines()[-3:]
    assert "only 3 classes" in head
    assert [row.split()[0] for row in rows] == ["10", "20"]
    assert all(len(row.split()) == 2 for row in rows)


def test_saved_features_without_a_label_each_are_refused(tmp_path, classify):
    np.savez(tmp_path / "train.npz", features=np.eye(4, dtype=np.float32), labels=np.arange(3))
    code, _, err = classify(f"--load_path {tmp_path}")
    assert code == 2
    assert f"{tmp_path}/train.npz has features [4, 4] and labels [3]" in err


def test_a_table_that_cannot_be_written_is_named(tmp_path, classify):
    for name in ("train", "val"):
        np.savez(tmp_path / f"{name}.npz", features=np.eye(4, dtype=np.float32), labels=np.arange(4) % 2)
    (tmp_path / "knn").mkdir()
    (tmp_path / "knn/output.txt").symlink_to(tmp_path / "missing/output.txt")
    code, _, err = classify(f"--load_path {tmp_path} --nb_knn 1 --save_path {tmp_path}/knn")
    assert code == 2
    assert f"{tmp_path}/knn/output.txt" in err
    assert "--save_path" in err


def test_half_precision_and_a_picture(trained, images, classify, tmp_path):
    model = f"--model_path {trained() / 'checkpoint-1.pd'} --data_path {images} {FEW} --save_path {tmp_path}/knn"
    code, out, err = classify(f"{model} --dtype float16 --num_pictures 2")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"{tmp_path}/knn/neighbors.png"
    names = ["neighbors.png", "output.txt", "train.npz", "val.npz"]
    assert sorted(path.name for path in (tmp_path / "knn").iterdir()) == names
    with np.load(tmp_path / "knn/train.npz") as bank:
        assert bank["features"].dtype == np.float16
    again = classify(f"--load_path {tmp_path}/knn {FEW}")[1]
    assert table(again) == table(out.rpartition("\n")[0].rpartition("\n")[0])


@pytest.mark.once
def test_options_choose_the_features(trained, images, classify, tmp_path):
    """Each gives features of its own; the seed of random weights decides about them."""
    model = f"--model_path {trained() / 'checkpoint-1.pd'} --data_path {images} {FEW}"
    seen = []
    for flags in ("", "--pool cls", "--norm", "--crop_pct 1", "--interpolation bicubic", "--random_weights",
                  "--random_weights --seed 1"):  # fmt: skip
        assert classify(f"{model} {flags} --save_path {tmp_path}/knn")[0] == 0
        with np.load(tmp_path / "knn/val.npz") as queries:
            seen.append(queries["features"].tobytes())
    assert len(set(seen)) == len(seen)


def test_images_are_their_own_nearest_neighbors(trained, images, classify):
    model = trained() / "checkpoint-1.pd"
    code, out, _ = classify(
        f"--finetune {model} --data_path {images}/train --eval_data_path {images}/train --nb_knn 1 --num_workers 0"
    )
    assert code == 0
    assert table(out) == [[1, 100.0, 100.0]]


def test_raw_pixels_need_no_network(images, classify):
    code, out, err = classify(f"--pixels --input_size 16 --data_path {images} {FEW}")
    assert (code, err) == (0, "")
    assert out.startswith("raw pixels\n30 images in the bank, 10 queries, 768 features, ")


def test_a_cae_is_normalized_as_it_was_trained(trained_cae, images, classify, tmp_path):
    seen = []
    for flags in ("", "--imagenet_default_mean_and_std"):
        model = trained_cae(flags=flags)
        code, out, _ = classify(
            f"--model_path {model} --random_weights --data_path {images} {FEW} --save_path {tmp_path}/knn"
        )
        assert code == 0
        assert "random weights, seed 0" in out
        with np.load(tmp_path / "knn/val.npz") as queries:
            seen.append(queries["features"])
    assert np.abs(seen[0] - seen[1]).max() > 1e-3


@pytest.mark.once
@pytest.mark.long
def test_two_processes_give_what_one_gives(trained, images, classify, by_two, tmp_path):
    """Features to 1e-5: batches of other sizes are multiplied in another order."""
    flags = f"--model_path {trained() / 'checkpoint-1.pd'} --data_path {images} {FEW} --batch_size 4"
    assert classify(f"{flags} --save_path {tmp_path}/one")[0] == 0
    by_two(f"knn {flags} --save_path two")
    for name in ("train.npz", "val.npz"):
        with np.load(tmp_path / "one" / name) as one, np.load(tmp_path / "two" / name) as two:
            np.testing.assert_array_equal(one["labels"], two["labels"])
            np.testing.assert_allclose(two["features"], one["features"], rtol=1e-5, atol=1e-5)
    one, two = (
        [line for line in (tmp_path / name / "output.txt").read_text().splitlines() if line[0] != ">"]
        for name in ("one", "two")
    )
    assert one == two


@pytest.fixture
def place(images, trained, tmp_path):
    """A folder with things that a user may name by mistake, and MODEL for a checkpoint."""
    (tmp_path / "flat").mkdir()
    for i in range(3):
        shutil.copy(next((images / "val/ring").iterdir()), tmp_path / f"flat/{i}.jpg")
    shutil.copytree(images / "val", tmp_path / "other")
    shutil.move(tmp_path / "other/ring", tmp_path / "other/rings")
    np.savez(tmp_path / "train.npz", something=np.zeros(3))
    return tmp_path


@pytest.mark.once
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--data_path DATA", "--model_path is required"),
        ("--model_path MODEL", "--data_path is required: a folder with train/ and val/"),
        (
            "--model_path MODEL --data_path DATA/val",
            "val has no folders train/ and val/; set --eval_data_path",
        ),
        ("--model_path MODEL --data_path PLACE/none", "none does not exist; expected"),
        ("--model_path MODEL --data_path DATA --eval_data_path PLACE/flat", "flat have no classes"),
        ("--model_path MODEL --data_path DATA --eval_data_path PLACE/other", "'rings'"),
        ("--model_path MODEL --data_path DATA --num_workers 0 --nb_knn 10 31", "--nb_knn 31 exceeds the 30 images"),
        ("--model_path MODEL --data_path DATA --input_size 33", "input_size 33 is not a multiple of patch_size 8"),
        ("--model_path PLACE/none.pd --data_path DATA", "none.pd cannot be opened"),
        ("--pixels --data_path DATA", "--pixels needs --input_size"),
        ("--pixels --input_size 32 --data_path DATA --model_path MODEL", "--pixels uses no network; leave"),
        ("--load_path PLACE --model_path MODEL", "--load_path has its features already; leave --model_path out"),
        ("--load_path PLACE --num_pictures 1", "--load_path has no images for --num_pictures"),
        ("--model_path MODEL --data_path DATA --num_pictures 1", "--num_pictures needs --save_path"),
        ("--load_path PLACE", "train.npz has no features and labels"),
        ("--load_path PLACE/none", "none/train.npz cannot be opened"),
    ],
)
def test_mistakes_are_sentences(trained, images, place, classify, flags, told):
    line = flags.replace("MODEL", str(trained() / "checkpoint-1.pd")).replace("DATA", str(images))
    code, _, err = classify(line.replace("PLACE", str(place)))
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("pixels", [True, False])
def test_unreadable_images_are_in_neither_set(trained, images, classify, tmp_path, capfd, pixels):
    source = "--pixels --input_size 16" if pixels else f"--model_path {trained()}/checkpoint-1.pd"
    capfd.readouterr()
    folder = tmp_path / "in"
    shutil.copytree(images, folder)
    bad = [sorted((folder / split).glob("*/*.jpg"))[place] for split, place in (("train", 0), ("val", 3))]
    for path in bad:
        path.write_bytes(b"no image")
    code, out, err = classify(f"{source} --data_path {folder} {FEW} --save_path {tmp_path}/knn")
    assert code == 1
    assert "29 images in the bank, 9 queries" in out
    assert [err.count(str(path)) for path in bad] == [1, 1]
    assert "2 of 40 images" in err
    with np.load(tmp_path / "knn/val.npz") as queries:
        assert queries["labels"].tolist() == [0, 1, 2, *range(4, 10)]


@pytest.mark.parametrize("name", ["train.npz", "output.txt"])
def test_files_of_the_user_are_kept(images, classify, tmp_path, name):
    (tmp_path / name).write_text("mine")
    code, _, err = classify(f"--pixels --input_size 8 --data_path {images} {FEW} --save_path {tmp_path}")
    assert code == 2
    assert f"{tmp_path / name}: it exists" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
