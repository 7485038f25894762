"""The segmentation probe: scores, files, pictures, options, mistakes."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from plsc_mae.analysis.pictures import class_colors
from plsc_mae.cli import main
from plsc_mae.data.demo import CLASSES, make_demo_data

pytestmark = pytest.mark.compat

FEW = "--num_workers 0 --max_train_patches 200 --nb_knn 5"


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    """20 training and 10 validation images of 32 pixels with masks."""
    folder = tmp_path_factory.mktemp("masked") / "demo"
    make_demo_data(folder, image_size=32, train_per_class=2, val_per_class=1, masks=True)
    return folder


@pytest.fixture
def probe(trained, capfd, tmp_path):
    """Run the command with a tiny encoder; gives the exit code, stdout and stderr."""
    model = trained() / "checkpoint-1.pd"
    capfd.readouterr()

    def run(data, flags: str = "") -> tuple[int, str, str]:
        line = f"segprobe --model_path {model} --data_path {data} --save_path {tmp_path}/out {FEW} {flags}"
        code = main(line.split())
        return code, *capfd.readouterr()

    return run


def test_scores_are_printed_and_saved_with_a_picture(probe, masked, tmp_path):
    code, out, err = probe(masked, "--num_pictures 3")
    assert (code, err) == (0, "")
    assert "20 training and 10 validation images, 11 classes; 200 training patches of 32 features" in out
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["classes"] == ["background", *CLASSES]
    assert sum(found["val_pixels"]) == 10 * 32 * 32
    with (tmp_path / "out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == found["classes"]
    for name, column in (("linear", "linear_iou"), ("knn", "knn_iou")):
        ious = found[name]["iou"]
        assert [row[column] for row in rows] == ["" if iou is None else str(iou) for iou in ious]
        assert found[name]["mean_iou"] == pytest.approx(np.mean([iou for iou in ious if iou is not None]))
        assert 30 < found[name]["pixel_accuracy"] <= 100  # the background alone has 70 %
    shown = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("background", "mean"))}
    assert shown["background"][1:] == [f"{found[name]['iou'][0]:.2f}" for name in ("linear", "knn")]
    assert shown["mean"][1:] == [f"{found[name]['mean_iou']:.2f}" for name in ("linear", "knn")]
    with Image.open(tmp_path / "out/predictions.png") as panel:
        assert panel.width > 4 * 224
        assert panel.height > 3 * 224
        assert panel.info["Software"].endswith("segprobe")


@pytest.mark.once
def test_a_repeated_run_gives_the_same_numbers_and_replaces_its_own_files_only(probe, masked, tmp_path):
    assert probe(masked)[0] == 0
    first = (tmp_path / "out/results.json").read_bytes()
    assert probe(masked)[0] == 0
    assert (tmp_path / "out/results.json").read_bytes() == first
    for name in ("predictions.png", "results.json", "results.csv"):
        kept = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(b"my own notes")
        code, _, err = probe(masked)
        assert code == 2
        assert name in err
        assert (tmp_path / "out" / name).read_bytes() == b"my own notes"
        (tmp_path / "out" / name).write_bytes(kept)


@pytest.mark.once
def test_a_training_image_segments_itself(probe, masked, tmp_path):
    """With one neighbor, each patch of a training image finds itself: errors are at the edges of patches only."""
    data = tmp_path / "same"
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            shutil.copytree(masked / kind / "val", data / kind / split)
    assert probe(data, "--nb_knn 1 --max_train_patches 1000 --num_pictures 0")[0] == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["classes"] == [str(index) for index in range(11)]
    assert found["knn"]["pixel_accuracy"] > 80
    assert not (tmp_path / "out/predictions.png").exists()


@pytest.mark.once
def test_options_choose_features_patches_and_classes(probe, masked, tmp_path):
    seen = set()
    for flags in ("", "--random_weights", "--random_weights --seed 1", "--no_norm", "--max_train_images 11",
                  "--ignore_index 0"):  # fmt: skip
        assert probe(masked, f"{flags} --num_pictures 0")[0] == 0
        found = json.loads((tmp_path / "out/results.json").read_text())
        seen.add(json.dumps([found["linear"], found["knn"]]))
    assert len(seen) == 6


@pytest.mark.once
def test_images_and_masks_of_any_size(probe, masked, tmp_path):
    """Scores are counted at the resolution of each mask; ignored pixels do not count."""
    data = tmp_path / "data"
    shutil.copytree(masked, data)
    mask = data / "masks/val/star/00000.png"
    wide = Image.open(mask).resize((90, 50), Image.Resampling.NEAREST)
    wide.paste(255, (0, 0, 90, 10))
    wide.save(mask)
    image = mask.parents[3] / "images/val/star/00000.jpg"
    Image.open(image).resize((90, 50)).save(image)
    assert probe(data)[0] == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert sum(found["val_pixels"]) == 9 * 32 * 32 + 90 * 40


@pytest.mark.once
def test_unreadable_images_are_left_out(probe, masked, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(masked, data)
    for name in ("train/ring/00001.jpg", "val/star/00000.jpg"):
        (data / "images" / name).write_bytes(b"no image")
    code, out, err = probe(data, "--num_pictures 10")
    assert code == 1
    assert "2 of 30 images could not be read" in err
    assert "19 training and" in out


@pytest.mark.once
def test_mistakes_are_one_sentence(probe, masked, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(masked, data)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    for flags, words in (
        (f"--classes {names}", ["2 classes", "--classes", "--ignore_index"]),
        (f"--classes {tmp_path}/none", ["none"]),
        ("--ignore_index 1 2 3 4 5 6 7 8 9 10", ["[0]", "two classes", "--ignore_index"]),
        ("--nb_knn 500", ["--nb_knn 500", "200"]),
    ):
        code, out, err = probe(data, flags)
        assert code == 2, out
        assert len(err.strip().splitlines()) == 1
        assert all(word in err for word in words), err
    (data / "masks/val/star/00000.png").unlink()
    code, _, err = probe(data)
    assert code == 2
    assert "star/00000.png" in err


def test_colors_of_classes_are_those_of_pascal_voc():
    colors = class_colors(256)
    assert colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[15].tolist() == [192, 128, 128]
    assert len(np.unique(colors, axis=0)) == 256
