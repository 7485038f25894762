"""Accuracies with few labels: the table, the files, and the same numbers in `compare`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from plsc_mae.analysis.few_shot import Estimate
from plsc_mae.analysis.linear import linear_accuracy
from plsc_mae.cli import main
from plsc_mae.data.few_labels import shots
from plsc_mae.data.imagefolder import find_images

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def run(capfd):
    """Run a command; gives the exit code, the lines of stdout, and stderr."""

    def call(line: str) -> tuple[int, list[str], str]:
        capfd.readouterr()
        code = main(line.split())
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return call


def test_numbers_are_those_of_the_chosen_images(trained, images, run, tmp_path):
    """The features of `knn --save_path`, and the same choices and classifier outside the command."""
    model = trained() / "checkpoint-1.pd"
    flags = f"--model_path {model} --data_path {images} --num_workers 0"
    code, lines, err = run(
        f"fewshot {flags} --shots 1 2 --fractions 0.5 --label_seeds 0 7 --save_path {tmp_path}/few.json"
    )
    assert (code, err) == (0, "")
    assert run(f"knn {flags} --nb_knn 1 --save_path {tmp_path}/knn")[0] == 0
    bank, queries = (np.load(tmp_path / "knn" / name) for name in ("train.npz", "val.npz"))
    train = find_images(images, "train")
    assert lines[2].endswith("is right for 10.0 % of the 10 validation images")
    found = {entry["labels"]: entry for entry in json.loads((tmp_path / "few.json").read_text())}
    assert list(found) == ["1 per class", "2 per class", "50 %"]
    assert [entry["images"] for entry in found.values()] == [10, 20, 20]
    for count in (1, 2):
        expected = []
        for seed in (0, 7):
            rows = shots(train, count, seed)
            part = bank["features"][rows], bank["labels"][rows], queries["features"], queries["labels"]
            expected.append(linear_accuracy(*part).top1)
        entry = found[f"{count} per class"]
        assert entry["accuracies"] == pytest.approx(expected)
        assert (entry["accuracy"], entry["margin"]) == pytest.approx(Estimate.of(expected))
        assert lines[3 + count].split()[-3:] == str(Estimate.of(expected)).split()
    code, _, _ = run(f"fewshot {flags} --shots 2 --label_seeds 7 --save_path {tmp_path}/few.csv")
    assert code == 0
    with (tmp_path / "few.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["labels"] == "2 per class"
    assert float(row["seed_7"]) == found["2 per class"]["accuracies"][1]
    assert row["margin"] == ""


@pytest.mark.slow
def test_compare_has_the_same_numbers(trained, images, run, tmp_path):
    model = trained() / "checkpoint-1.pd"
    flags = f"--model_path {model} --data_path {images} --num_workers 0 --shots 2 --label_seeds 0 1 2"
    assert run(f"fewshot {flags} --save_path {tmp_path}/few.json")[0] == 0
    code, lines, _ = run(f"compare {flags} --fractions 0.5 --nb_knn 5 --save_path {tmp_path}/table.json")
    assert code == 0
    assert lines[0] == "| features | k-NN (k = 5) | linear | 2 per class | 50 % |"
    assert lines[1].count("--:") == 4
    (row,) = json.loads((tmp_path / "table.json").read_text())
    (entry,) = json.loads((tmp_path / "few.json").read_text())
    assert row["few"]["2 per class"] == entry["accuracies"]
    assert lines[2].split(" | ")[3] == str(Estimate.of(entry["accuracies"]))


@pytest.mark.parametrize(
    ("flags", "mentioned"),
    [
        ("--shots 4", "3 images"),
        ("--shots none", "--fractions"),
        ("--shots 1 --save_path few.txt", "few.txt"),
        ("--fractions 1.5", "(0, 1]"),
    ],
)
def test_mistakes_are_sentences(trained, images, run, flags, mentioned):
    code, _, err = run(f"fewshot --model_path {trained()}/checkpoint-1.pd --data_path {images} --num_workers 0 {flags}")
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert mentioned in err
