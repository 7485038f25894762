"""`--eval`: metrics, files and pictures of a trained classifier, and the published evaluation sets.

The classifier under test is right about every image of COLORS by construction, among all of its outputs but the first,
which has the largest logit for every image.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.analysis.corruption import ALEXNET_ERRORS
from plsc_mae.cli import main
from plsc_mae.config import FINETUNE
from plsc_mae.config.schema import plain_values
from plsc_mae.data.imagenet import synsets
from plsc_mae.methods.classify import build_classifier, build_normalize
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = [pytest.mark.compat, pytest.mark.once]
SIZES = {"input_size": (16,), "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
FLAGS = "--model vit_base_patch16 --input_size 16 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 --num_workers 0"
COLORS = np.random.default_rng(3).integers(0, 256, (6, 16, 16, 3), np.uint8)
A = [name for name in synsets("a") if name in synsets("r")][:6]  # classes of the images
ALWAYS_LARGEST = next(name for name in synsets() if name not in {*synsets("a"), *synsets("r")})


@pytest.fixture
def oracle(tmp_path):
    """Write a checkpoint of a classifier of 1000 outputs in a random order, named after the synsets."""
    names = np.random.default_rng(1).permutation(synsets()).tolist()
    config = dataclasses.replace(FINETUNE["mae"](), model="vit_base_patch16", **SIZES)
    paddle.seed(0)
    model = build_classifier(config, 1000)
    model.eval()
    with paddle.no_grad():
        features = model.pool(build_normalize(config)(paddle.to_tensor(COLORS))).numpy()
    solution = np.zeros((32, 1000), np.float32)
    solution[:, [names.index(name) for name in A]] = np.linalg.pinv(features.astype(np.float64)) * 10
    bias = np.zeros(1000, np.float32)
    bias[names.index(ALWAYS_LARGEST)] = 20
    model.head.weight.set_value(solution)
    model.head.bias.set_value(bias)
    stored = {
        "model": {name: value.numpy() for name, value in model.state_dict().items()},
        "phase": "finetune",
        "args": plain_values(config),
        "classes": names,
    }
    path = tmp_path / "oracle.pd"
    checkpoint_file.save(path, {**stored, "epoch": 0, "step": 1})
    return path


def fill(root: Path, *folders: str, images=range(6), name: str = "0.png") -> Path:
    for folder, image in zip(folders, images, strict=False):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLORS[image]).save(root / folder / name)
    return root


@pytest.fixture
def shown(capfd):
    """Evaluate a checkpoint without files; gives stdout."""

    def run(checkpoint: Path, data: Path, flags: str = "") -> str:
        assert main(f"finetune {FLAGS} --eval --resume {checkpoint} --data_path {data} {flags}".split()) == 0
        return capfd.readouterr().out

    return run


@pytest.fixture
def evaluate(capfd, tmp_path):
    """Evaluate a checkpoint; gives the metrics in the file, stdout and stderr."""

    def run(checkpoint: Path, data: Path, flags: str = "", folder: str = "result"):
        capfd.readouterr()
        line = f"finetune {FLAGS} --eval --resume {checkpoint} --data_path {data} --save_path {tmp_path}/{folder}"
        code = main(f"{line} {flags}".split())
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads((tmp_path / folder / "metrics.json").read_text()), out, err

    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_take_the_classes_of_the_set(oracle, evaluate, shown, tmp_path):
    data = fill(tmp_path / "set", *A)
    assert "* Acc@1 0.000 Acc@5 100.000 loss " in shown(oracle, data)
    assert "* Acc@1 100.000 Acc@5 100.000 loss " in shown(oracle, data, "--eval_set imagenet-r")
    found, out, err = evaluate(oracle, data, "--eval_set imagenet-a")
    assert (found["acc1"], found["images"], found["eval_set"]) == (100, 6, "imagenet-a")
    assert "* Acc@1 100.000 Acc@5 100.000 loss " in out
    assert "6 of the 200 classes" in out + err
    rows = table(tmp_path / "result/classes.csv")
    assert [row["class"] for row in rows if row["images"] == "1"] == A
    assert {row["accuracy"] for row in rows} == {"", "100.0"}


def test_class_numbers_of_v2(oracle, shown, tmp_path):
    numbers = [str(synsets().index(name)) for name in A]
    data = fill(tmp_path / "v2", *numbers)
    assert "* Acc@1 0.000 Acc@5 100.000 loss " in shown(oracle, data, "--eval_set imagenet-v2")
    assert "* Acc@1 100.000 Acc@5 100.000 loss " in shown(lower_bias(oracle), data, "--eval_set imagenet-v2")
    swapped = fill(tmp_path / "swapped", *numbers, images=[1, 0, 2, 3, 4, 5])
    assert "* Acc@1 66.667 " in shown(lower_bias(oracle), swapped, "--eval_set imagenet-v2")
    assert "* Acc@1 100.000 " in shown(oracle, fill(tmp_path / "ids", *A), "--eval_set shared")


def test_real_labels(oracle, evaluate, tmp_path):
    data = tmp_path / "real"
    for number, image in ((1, 0), (2, 1), (4, 2)):
        fill(data, "any", images=[image], name=f"ILSVRC2012_val_{number:08d}.JPEG")
    index = synsets().index
    (data / "real.json").write_text(json.dumps([[index(A[0]), 5], [index(ALWAYS_LARGEST), 7], [], []]))
    found, out, _ = evaluate(oracle, data, "--eval_set imagenet-real")
    assert (found["real_acc1"], found["real_acc5"], found["images"]) == (50, 100, 2)
    assert "* ReaL Acc@1 50.000 Acc@5 100.000, 2 images" in out
    assert "acc1" not in found


@pytest.mark.slow
def test_corruption_errors(oracle, evaluate, tmp_path):
    """Errors of 0 and 100 percent by construction; the reference is the sum over severities."""
    data, wrong = tmp_path / "c", {"fog": 2, "pixelate": 5}
    names = np.random.default_rng(0).permutation(list(ALEXNET_ERRORS))
    for name in names:
        for severity in range(1, 6):
            bad = severity <= wrong.get(name, 0)
            fill(data / name / str(severity), A[0], images=[1 if bad else 0])
    flags = f"--eval_set imagenet-c --classes {tmp_path}/names.txt"
    stored = checkpoint_file.load(oracle).meta["classes"]
    other = synsets().index(ALWAYS_LARGEST)
    renamed = ["n00000000" if name == ALWAYS_LARGEST else name for name in stored]
    assert other >= 0
    (tmp_path / "names.txt").write_text("\n".join(renamed) + "\n")
    with pytest.raises(AssertionError, match=ALWAYS_LARGEST):  # a class of the set is missing: refused
        evaluate(oracle, data, flags)
    found, out, _ = evaluate(lower_bias(oracle), data, "--eval_set imagenet-c")
    expected = (40 / ALEXNET_ERRORS["fog"] + 100 / ALEXNET_ERRORS["pixelate"]) / 15 * 100
    assert found["mce"] == pytest.approx(expected)
    assert found["error"] == pytest.approx(140 / 15)
    assert f"* mCE {expected:.2f} %" in out
    rows = {row["corruption"]: row for row in table(tmp_path / "result/corruptions.csv")}
    assert [rows["fog"][f"error_{severity}"] for severity in range(1, 6)] == ["100.0", "100.0", "0.0", "0.0", "0.0"]
    with Image.open(tmp_path / "result/evaluation.png") as picture:
        assert min(picture.size) > 300


def lower_bias(path: Path) -> Path:
    """Write the same classifier without the output that is largest for every image."""
    stored = checkpoint_file.load(path)
    model = {name: np.array(value) for name, value in stored.model.items()}
    model["head.bias"] = np.zeros_like(model["head.bias"])
    better = path.with_name("better.pd")
    checkpoint_file.save(better, {**stored.meta, "model": model})
    return better


def test_files_of_an_evaluation(classifier, images, evaluate, tmp_path, tiny_classifier_flags):
    """Numbers in all files are those of scikit-learn for the predictions that `predict` writes."""
    metrics = pytest.importorskip("sklearn.metrics")
    found, out, _ = evaluate(classifier, images, tiny_classifier_flags)
    assert (
        main(
            f"predict --model_path {classifier} --img_path {images} --topk 10 --num_workers 0 "
            f"--save_path {tmp_path}/predicted.jsonl".split()
        )
        == 0
    )
    lines = [json.loads(line) for line in (tmp_path / "predicted.jsonl").read_text().splitlines()]
    truth = [line["image"].split("/")[0] for line in lines]
    predicted = [line["classes"][0] for line in lines]
    assert found["acc1"] == pytest.approx(100 * metrics.accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(100 * metrics.f1_score(truth, predicted, average="macro"))
    assert found["balanced_acc"] == pytest.approx(100 * metrics.balanced_accuracy_score(truth, predicted))
    with (tmp_path / "result/confusion.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    matrix = metrics.confusion_matrix(truth, predicted, labels=head[1:])
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix.tolist()
    assert out.splitlines()[-1] == f"{tmp_path}/result/evaluation.png"
    assert "calibration error" in out
    evaluate(classifier, images, tiny_classifier_flags)  # replaces its own files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/classes.csv").write_text("my,classes\n")
    with pytest.raises(AssertionError, match=r"classes\.csv"):
        evaluate(classifier, images, tiny_classifier_flags, folder="mine")


@pytest.fixture
def tiny_classifier_flags() -> str:
    """Sizes of the fixture `classifier`."""
    return "--input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 2 --layer_decay 1.0"


@pytest.mark.slow
def test_two_processes_give_what_one_gives(oracle, evaluate, by_two, tmp_path):
    data = fill(tmp_path / "set", *A)
    found, _, _ = evaluate(oracle, data, "--eval_set imagenet-a --batch_size 2")
    by_two(
        f"finetune {FLAGS} --eval --resume {oracle} --data_path {data} --eval_set imagenet-a --save_path two "
        "--batch_size 2"
    )
    two = json.loads((tmp_path / "two/metrics.json").read_text())
    assert two == pytest.approx(found)
    assert (tmp_path / "two/classes.csv").read_bytes() == (tmp_path / "result/classes.csv").read_bytes()


@pytest.mark.parametrize(
    ("flags", "mentioned"),
    [
        ("--eval_set imagenet-a", "--eval_set has no effect without --eval"),
        ("--save_path here", "--save_path has no effect without --eval"),
        ("--eval --resume x --real_labels y", "--real_labels has no effect without --eval_set imagenet-real"),
        ("--eval --resume x --eval_set imagenet-z", "imagenet-v2"),
        ("--eval --resume x --train_fraction 0.5", "give --train_fraction 1"),  # it may stand in config.yaml
        ("--task multilabel --nb_classes 3", "--nb_classes"),
        ("--label_columns a", "--task"),
    ],
)
def test_options_that_do_not_fit(capfd, flags, mentioned):
    assert main(f"finetune --data_path data {flags}".split()) == 2
    assert mentioned in capfd.readouterr().err
