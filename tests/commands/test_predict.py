"""Classes of images by a trained classifier: what is printed, what files hold."""

from __future__ import annotations

import csv
import json
import logging
import re

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.commands.pictures import find_pictures, true_outputs
from plsc_mae.commands.predict import warn_of_equal_predictions
from plsc_mae.loading.classifier import load_classifier

pytestmark = pytest.mark.compat
SHAPES = ["arrow", "circle", "crescent", "cross", "heart", "ring", "square", "star", "stripes", "triangle"]


@pytest.fixture
def predict(classifier, images, capfd):
    """Run the command; gives the exit code, stdout and stderr."""

    def run(flags: str = "", model_path=classifier, img_path=images) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(f"predict --model_path {model_path} --img_path {img_path} --num_workers 0 {flags}".split())
        return code, *capfd.readouterr()

    return run


def probabilities_of(model_path, image, **options) -> np.ndarray:
    """Softmax of the logits, in float64, of an image of the network's size."""
    trained = load_classifier(str(model_path), **options)
    with Image.open(image) as opened:
        pixels = paddle.to_tensor(np.asarray(opened)[None])
    logits = trained.network(trained.normalize(pixels))[0].numpy().astype(np.float64)
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def test_predictions_are_the_networks(predict, classifier, images, tmp_path):
    """Also in batches that do not divide the images, with names and order of the training data."""
    path = tmp_path / "out/predictions.jsonl"
    code, out, err = predict(f"--topk 3 --batch_size 4 --save_path {path}")
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["image"] for record in records] == [f"{shape}/00000.jpg" for shape in SHAPES]
    assert [record["true_class"] for record in records] == SHAPES
    for record in records:
        expected = probabilities_of(classifier, images / "val" / record["image"])
        best = np.argsort(-expected)[:3]
        assert record["indices"] == best.tolist()
        assert record["classes"] == [SHAPES[index] for index in best]
        np.testing.assert_allclose(record["probabilities"], expected[best], rtol=1e-5)  # of float32
    lines = out.splitlines()
    assert lines[:2] == [
        f"reading 10 images of {images}/val",
        f"{classifier}: 32 tensors matched (plsc_mae), 10 classes, epoch 1",
    ]
    assert lines[-2] == str(path)
    right = sum(record["classes"][0] == shape for record, shape in zip(records, SHAPES, strict=True))
    assert lines[-1] == f"{right} of 10 images are right ({10 * right:.1f} %)"
    assert len(lines) == 4 + 10 * 4
    first = records[0]
    assert lines[2:4] == ["arrow/00000.jpg", f"  {100 * first['probabilities'][0]:6.2f} %  {first['classes'][0]}"]


@pytest.mark.once
def test_files_of_all_kinds_hold_the_same(predict, images, tmp_path):
    image = images / "val/ring/00000.jpg"
    for suffix in ("jsonl", "json", "csv"):
        assert predict(f"--topk 20 --save_path {tmp_path}/found.{suffix}", img_path=image)[0] == 0
    (record,) = json.loads((tmp_path / "found.json").read_text())
    assert record == json.loads((tmp_path / "found.jsonl").read_text())
    assert len(record["classes"]) == 10
    np.testing.assert_allclose(sum(record["probabilities"]), 1.0, rtol=1e-5)
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "rank", "class", "index", "probability", "true_class"]
    assert (record["true_class"], {row["true_class"] for row in rows}) == (None, {""})  # of a single image
    assert [int(row["rank"]) for row in rows] == list(range(1, 11))
    assert {row["image"] for row in rows} == {"00000.jpg"}
    assert [row["class"] for row in rows] == record["classes"]
    assert [int(row["index"]) for row in rows] == record["indices"]
    assert [float(row["probability"]) for row in rows] == record["probabilities"]


def test_averaged_weights_and_other_names(predict, classifier, images, tmp_path):
    image, names = images / "val/ring/00000.jpg", tmp_path / "names.txt"
    names.write_text("".join(f"a, {shape}\n" for shape in SHAPES))
    code, _, _ = predict(f"--model_key model_ema --classes {names} --save_path {tmp_path}/ema.json", img_path=image)
    assert code == 0
    (record,) = json.loads((tmp_path / "ema.json").read_text())
    averaged = probabilities_of(classifier, image, model_key="model_ema")
    assert np.abs(averaged - probabilities_of(classifier, image)).max() > 1e-4
    np.testing.assert_allclose(record["probabilities"], np.sort(averaged)[:-6:-1], rtol=1e-5)
    assert record["classes"] == [f"a, {SHAPES[index]}" for index in np.argsort(-averaged)[:5]]


def test_a_foreign_classifier(predict, images, root):
    path = root / "tests/golden/mae/checkpoints/fb_finetuned_gap.pth"
    code, out, err = predict("--num_heads 2 --topk 2", path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == f"{path}: 32 tensors matched (facebook), 10 classes"
    assert re.fullmatch(r" {2,4}\d+\.\d\d %  \d", lines[3])
    assert "are right" not in out  # its classes are numbers, the folders have names
    code, _, err = predict("", path)
    assert (code, err.count("\n")) == (2, 1)
    assert "fb_finetuned_gap.pth does not store its number of heads; give it with --num_heads" in err


def test_answers_are_counted_where_the_classes_are_known(predict, images, tmp_path):
    """By the labels of a list; not if the classifier lacks a class, nor for images without one."""
    lines = [f"{images}/val/{shape}/00000.jpg {number}\n" for number, shape in enumerate(SHAPES)]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("\n".join(SHAPES))
    code, out, _ = predict(f"--topk 1 --save_path {tmp_path}/found.csv", img_path=tmp_path / "list.txt")
    assert code == 0
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["true_class"] for row in rows] == SHAPES
    right = sum(row["class"] == row["true_class"] for row in rows)
    assert out.splitlines()[-1] == f"{right} of 10 images are right ({10 * right:.1f} %)"
    (tmp_path / "classes.txt").write_text("\n".join(["bow", *SHAPES[1:]]))
    assert "are right" not in predict("--topk 1", img_path=tmp_path / "list.txt")[1]
    assert "are right" not in predict("--topk 1", img_path=images / "val/ring")[1]


def test_a_file_replaces_long_output(predict, images, tmp_path):
    """The console shows 20 images, unless it alone has the predictions."""
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images}/val/ring/00000.jpg\n" * 23)
    out = predict(f"--topk 1 --save_path {tmp_path}/found.csv", img_path=listed)[1]
    assert (out.count("00000.jpg"), "and 3 images more\n" in out) == (20, True)
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 24
    assert predict("--topk 1", img_path=listed)[1].count("00000.jpg") == 23


def test_the_classes_of_images_are_those_of_an_evaluation(predict, images, tmp_path):
    """Loose images and those of lists without labels have none; names may differ as numbers and in Unicode's form."""
    (tmp_path / "mixed").mkdir()
    for shape in ("ring", "star"):
        (tmp_path / "mixed" / shape).symlink_to(images / "val" / shape)
    (tmp_path / "mixed/loose.jpg").symlink_to(images / "val/ring/00000.jpg")
    assert " of 2 labeled images are right (" in predict(img_path=tmp_path / "mixed")[1]
    (tmp_path / "bare.txt").write_text("mixed/ring/00000.jpg\nmixed/star/00000.jpg\n")
    assert "are right" not in predict(img_path=tmp_path / "bare.txt")[1]
    names = (*"abcd", "é", "07", *"efgh")
    (tmp_path / "names.txt").write_text("\n".join(names))
    for number, shape in ((7, "ring"), ("e\u0301", "heart")):
        (tmp_path / f"renamed/{number}").mkdir(parents=True)
        (tmp_path / f"renamed/{number}/0.jpg").symlink_to(images / f"val/{shape}/00000.jpg")
        found = true_outputs(find_pictures(f"{tmp_path}/renamed"), f"{tmp_path}/renamed", names)
        assert found.tolist() == ([5] if number == 7 else [5, 4])
        assert "are right" in predict(f"--classes {tmp_path}/names.txt", img_path=tmp_path / "renamed")[1]


def test_classes_that_no_image_is_classified_as_are_named(predict, images, tmp_path):
    """Of a classifier that answers one class for images of two; not if the images are of that class alone."""
    (answer,) = [line.split()[-1] for line in predict("--topk 1", img_path=images / "val/ring")[1].splitlines()[2:3]]
    other = next(shape for shape in SHAPES if shape != answer)
    for shape in (answer, other):
        (tmp_path / "in" / shape).mkdir(parents=True)
        for number in range(3):
            (tmp_path / f"in/{shape}/{number}.jpg").symlink_to(images / "val/ring/00000.jpg")
        _, out, err = predict(img_path=tmp_path / "in")
        assert ("3 of 3" if shape == answer else "3 of 6") in out.splitlines()[-1]
        assert (f"no image is classified as '{other}' (3 images)" in err) == (shape == other)


@pytest.mark.parametrize(
    ("probabilities", "warned"),
    [
        ([[0.25, 0.26, 0.49]] * 4 + [[0.26, 0.25, 0.49]], True),  # in any order
        ([[0.25, 0.26, 0.49]] * 4, False),
        ([[0.25, 0.26, 0.49]] * 4 + [[0.28, 0.25, 0.47]], False),
        ([[0.04, 0.04, 0.92]] * 5, False),  # of one class
    ],
)
def test_a_classifier_that_does_not_distinguish_images_is_noticed(monkeypatch, probabilities, warned):
    messages: list[str] = []
    logger = logging.getLogger("plsc_mae.commands.predict")
    monkeypatch.setattr(logger, "warning", lambda text, *numbers: messages.append(text % numbers))
    values = np.array(probabilities)
    order = np.argsort(-values, axis=1)
    warn_of_equal_predictions(order.astype(np.float32), np.take_along_axis(values, order, axis=1))
    told = "all 5 images get nearly the same probabilities (they differ by at most 1 %)"
    assert [told in message for message in messages] == [True] * warned


def test_the_epoch_of_the_best_checkpoint_is_told(predict, images, tmp_path):
    sizes = "--model vit_base_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2"
    words = f"{sizes} --batch_size 10 --epochs 2 --warmup_epochs 0 --num_workers 0 --data_path {images}"
    assert main(f"finetune {words} --output_dir {tmp_path}".split()) == 0
    records = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    best = max(records, key=lambda record: record["test_acc1"])  # the first of equal ones
    out = predict("", tmp_path / "checkpoint-best.pd")[1]
    assert f", 10 classes, epoch {best['epoch']} with test_acc1 {best['test_acc1']:.4g}\n" in out


def test_workers_give_the_same(predict, tmp_path):
    for workers in (0, 1):
        assert predict(f"--batch_size 4 --num_workers {workers} --save_path {tmp_path}/{workers}.csv")[0] == 0
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            "--img_path PLACE/none",
            "none does not exist; expected an image, a folder",
        ),
        ("--img_path PLACE/bad.jpg", "bad.jpg"),
        ("--img_path ", "--img_path is required"),
        ("--topk 0", "--topk must lie in [1, inf), got 0"),
        ("--save_path PLACE/found.txt", "found.txt: expected a file that ends in .jsonl, .json or .csv"),
        ("--save_path PLACE/bad.jpg/found.csv", "choose another --save_path"),
        ("--classes PLACE/none.txt", "cannot read the class names of "),
        (
            "--model_path PRETRAINED",
            "holds no classifier: it has no head; expected a checkpoint of `plsc-mae finetune`",
        ),
        ("--model_path PLACE/bad.jpg", "is not a weight file"),
        ("--model_key ema", "has no tensors under 'ema'"),
    ],
)
def test_mistakes_are_sentences(predict, trained, tmp_path, flags, told):
    (tmp_path / "bad.jpg").write_text("no image")
    pretrained = trained() / "checkpoint-1.pd" if "PRETRAINED" in flags else ""
    flags = flags.replace("PLACE", str(tmp_path)).replace("PRETRAINED", str(pretrained))
    code, _, err = predict(flags if flags.split()[1:] else "--img_path=")
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert told in err
    assert "bad_image" not in err  # no other image can stand in
    assert err.count("\n") == 1


@pytest.fixture
def half_readable(images, tmp_path):
    """A folder of four images, of which the first and the third are damaged."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, shape in zip("abcd", SHAPES, strict=False):
        (folder / f"{name}.jpg").write_bytes((images / f"val/{shape}/00000.jpg").read_bytes())
    (folder / "a.jpg").write_bytes(b"no image")
    (folder / "c.jpg").write_bytes((folder / "c.jpg").read_bytes()[:400])
    return folder


@pytest.mark.once
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_left_out_and_named(predict, half_readable, tmp_path, workers):
    flags = f"--batch_size 2 --num_workers {workers} --save_path {tmp_path}/found.jsonl"
    code, out, err = predict(flags, img_path=half_readable)
    assert code == 1
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == ["b.jpg", "d.jpg"]
    assert "a.jpg" not in out
    warnings = err.splitlines()
    assert len(warnings) == 3
    assert f"{half_readable}/a.jpg: it is not an image" in warnings[0]
    assert f"{half_readable}/c.jpg: " in warnings[1]
    assert "2 of 4 images" in warnings[2]
    code, _, err = predict(f"--num_workers {workers} --bad_image error", img_path=half_readable)
    assert code == 2
    assert f"{half_readable}/a.jpg: it is not an image" in err


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mylabels.csv", "image,label\na.jpg,cat\n"),
        ("mylabels.jsonl", '{"image": "a.jpg", "classes": ["cat"]}\n'),
        ("mylabels.json", '[{"image": "a.jpg"}]'),
    ],
)
def test_files_of_the_user_are_not_replaced(predict, images, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    image = images / "val/ring/00000.jpg"
    code, out, err = predict(f"--save_path {tmp_path}/{name}", img_path=image)
    assert (code, out) == (2, "")
    assert f"{tmp_path}/{name}" in err
    assert "--save_path" in err
    assert (tmp_path / name).read_text() == content
    for _ in range(2):  # but earlier predictions are
        assert predict(f"--save_path {tmp_path}/new{name}", img_path=image)[0] == 0
