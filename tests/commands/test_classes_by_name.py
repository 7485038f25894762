"""Classes have names in every command: folders may lack, reorder or rename classes, and accuracies stay right.

The classifier under test is right about every image by construction: its head solves a linear system for the features
of one image of each class. A mistaken class therefore shows as an accuracy below 100 %.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.config import FINETUNE
from plsc_mae.config.schema import plain_values
from plsc_mae.methods.classify import build_classifier, build_normalize
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = [pytest.mark.compat, pytest.mark.once]
SIZES = {"input_size": (16,), "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
FLAGS = "--model vit_base_patch16 --input_size 16 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2"
TRAIN = "--batch_size 2 --lr 0 --blr none --warmup_epochs 0 --num_workers 0 --drop_path 0 --num_workers 0"
PADDED = [f"{number:02d}" for number in range(12)]
COLORS = np.random.default_rng(3).integers(0, 256, (12, 16, 16, 3), np.uint8)


def fill(root: Path, *names: str, colors=range(12)) -> Path:
    """Write the image of a class to train/NAME and val/NAME for each name."""
    for name, color in zip(names, colors, strict=False):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(COLORS[color]).save(root / split / name / "0.png")
    return root


@pytest.fixture
def oracle(tmp_path):
    """Return a function that writes a checkpoint of a classifier of the first images, with or without class names."""

    def write(*names: str, unnamed: int = 0) -> Path:
        count = len(names) or unnamed
        config = dataclasses.replace(FINETUNE["mae"](), model="vit_base_patch16", **SIZES)
        paddle.seed(0)
        model = build_classifier(config, count)
        model.eval()
        with paddle.no_grad():
            features = model.pool(build_normalize(config)(paddle.to_tensor(COLORS[:count]))).numpy()
        solution = np.linalg.pinv(features.astype(np.float64)) * 10
        model.head.weight.set_value(solution.astype(np.float32))
        model.head.bias.set_value(np.zeros(count, np.float32))
        stored = {
            "model": {name: value.numpy() for name, value in model.state_dict().items()},
            "phase": "finetune",
            "args": plain_values(config),
            **({"classes": list(names)} if names else {}),
        }
        path = tmp_path / "oracle.pd"
        checkpoint_file.save(path, {**stored, "epoch": 0, "step": 1})
        return path

    return write


@pytest.fixture
def run(capfd):
    """Return a function that runs a command and returns (exit code, stdout, stderr)."""

    def call(line: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(line.split())
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def evaluate(run):
    """Return a function that evaluates a checkpoint; its result is (accuracy, images, all output)."""

    def call(checkpoint: Path, data: Path, flags: str = "") -> tuple[float, int, str]:
        code, out, err = run(
            f"finetune {FLAGS} --num_workers 0 --eval --resume {checkpoint} --data_path {data} {flags}"
        )
        assert code == 0, err
        accuracy, images = re.findall(r"Acc@1 (\S+) .*, (\d+) images?", out)[0]
        return float(accuracy), int(images), out + err

    return call


def refusal(run, line: str) -> str:
    code, _, err = run(line)
    assert code == 2
    assert err.count("plsc-mae: error: ") == 1
    return err


def test_evaluation_of_other_folders(oracle, evaluate, tmp_path):
    checkpoint = oracle("a", "b", "c")
    assert evaluate(checkpoint, fill(tmp_path / "all", "a", "b", "c"))[:2] == (100, 3)
    accuracy, images, output = evaluate(checkpoint, fill(tmp_path / "some", "b", "c", colors=[1, 2]))
    assert (accuracy, images) == (100, 2)
    assert "2 of the 3 classes" in output
    assert evaluate(checkpoint, fill(tmp_path / "one", "c", colors=[2]), "--nb_classes 3")[:2] == (100, 1)
    (tmp_path / "val.txt").write_text("all/val/c/0.png 2\nall/val/b/0.png 1\n")
    accuracy, images, output = evaluate(checkpoint, tmp_path / "val.txt")
    assert (accuracy, images) == (100, 2)
    assert "as class numbers" in output


def test_evaluation_of_numbered_folders(oracle, evaluate, tmp_path):
    """Folders 0 to 11 are sorted 0, 1, 10, 11, 2, but are the classes 00 to 11."""
    accuracy, _, output = evaluate(oracle(*PADDED), fill(tmp_path / "data", *map(str, range(12))))
    assert accuracy == 100
    assert "by value" in output


def test_evaluation_refuses_unknown_classes(oracle, run, tmp_path):
    checkpoint, data = oracle("a", "b", "c"), fill(tmp_path / "data", "b", "zebra", "C")
    line = f"finetune {FLAGS} --eval --resume {checkpoint} --data_path"
    message = refusal(run, f"{line} {data}")
    assert all(part in message for part in ("'zebra'", "'C' resembles 'c'", "expected only 'a', 'b', 'c'", "--classes"))
    (tmp_path / "val.txt").write_text("data/val/b/0.png 1\ndata/val/b/0.png 3\n")
    assert "start at 1" in refusal(run, f"{line} {tmp_path / 'val.txt'}")
    assert "--nb_classes 4" in refusal(run, f"{line} {data} --nb_classes 4")


def test_evaluation_of_weights_without_names(oracle, evaluate, run, tmp_path):
    checkpoint = oracle(unnamed=12)
    ordered = fill(tmp_path / "ordered", *PADDED)
    accuracy, _, output = evaluate(checkpoint, ordered)
    assert accuracy == 100
    assert "stores no class names" in output
    numbers = fill(tmp_path / "numbers", *map(str, range(12)))
    accuracy, _, output = evaluate(checkpoint, numbers)
    assert accuracy == pytest.approx(100 / 6, abs=0.01)
    assert "warning: the folders of " in output
    assert "'10' is output 2" in output
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(12))))
    assert evaluate(checkpoint, numbers, f"--classes {names}")[0] == 100
    shutil.rmtree(numbers / "val/3")
    assert evaluate(checkpoint, numbers, f"--classes {names}")[:2] == (100, 11)
    message = refusal(run, f"finetune {FLAGS} --eval --resume {checkpoint} --data_path {numbers}")
    assert "11 classes" in message
    assert "12 outputs without names" in message
    (tmp_path / "val.txt").write_text("".join(f"ordered/val/{name}/0.png {int(name)}\n" for name in PADDED[1:]))
    accuracy, _, output = evaluate(checkpoint, tmp_path / "val.txt")
    assert accuracy == 100
    assert "no label 0" in output


def last(folder: Path) -> dict:
    return json.loads((folder / "log.txt").read_text().splitlines()[-1])


def test_a_head_is_kept_for_the_same_classes_only(oracle, run, tmp_path):
    """At learning rate 0, so the accuracy is that of the head that the run starts from."""
    checkpoint = oracle("b", "a", "c")

    def tuned(name: str, *classes: str, flags: str = "") -> tuple[float, str]:
        data = fill(tmp_path / name, *classes, colors=[1, 0, 2])
        code, out, err = run(
            f"finetune {FLAGS} {TRAIN} --epochs 1 --finetune {checkpoint} --data_path {data} "
            f"--output_dir {tmp_path / name}/out {flags}"
        )
        assert code == 0, err
        return last(tmp_path / name / "out")["test_acc1"], out + err

    accuracy, output = tuned("permuted", "a", "b", "c")
    assert accuracy == 100
    assert "reordered by class name" in output
    assert tuned("spare", "a", "b", "c", flags="--nb_classes 4")[1].count("initializing a new head") == 1
    for names in (("a", "b", "d"), ("A", "b", "c")):
        _, output = tuned("".join(names), *names)
        assert "differ from those of this run: initializing a new head" in output
        assert "new layers: head" in output
    (tmp_path / "names.txt").write_text("y\nx\nz\n")
    assert tuned("named", "x", "y", "z", flags=f"--classes {tmp_path / 'names.txt'}")[0] == 100


def test_names_of_a_list_file_reach_checkpoint_tables_and_predictions(run, evaluate, tmp_path):
    fill(tmp_path, "a", "b", "c")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split}/{name}/0.png {i}\n" for i, name in enumerate("abc")))
    (tmp_path / "classes.txt").write_text("pug\nchow\nhusky\n")
    lists = f"--data_path {tmp_path}/train.txt --eval_data_path {tmp_path}/val.txt"
    code, _, err = run(f"finetune {FLAGS} {TRAIN} --epochs 1 {lists} --output_dir {tmp_path}/out")
    assert code == 0, err
    best = tmp_path / "out/checkpoint-best.pd"
    assert checkpoint_file.load(best).meta["classes"] == ["pug", "chow", "husky"]
    (tmp_path / "classes.txt").rename(tmp_path / "names.txt")  # numbers are matched with the checkpoint's classes
    evaluate(best, tmp_path / "val.txt", f"--save_path {tmp_path}/result")
    rows = [line.split(",") for line in (tmp_path / "result/classes.csv").read_text().splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [("class", "index"), ("pug", "0"), ("chow", "1"), ("husky", "2")]
    code, out, _ = run(f"predict --model_path {best} --img_path {tmp_path}/val.txt --num_workers 0 --topk 3")
    assert code == 0
    assert all(out.count(name) >= 3 for name in ("pug", "chow", "husky"))
    message = refusal(run, f"finetune {FLAGS} {TRAIN} {lists} --classes {tmp_path}/names.txt --output_dir {tmp_path}/b")
    assert "classes.txt" in message


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_resumes_with_the_classes_it_was_trained_on(oracle, run, tmp_path):
    checkpoint, data = oracle(*PADDED), fill(tmp_path / "data", *PADDED)
    line = f"finetune {FLAGS} {TRAIN} --finetune {checkpoint} --data_path {data} --output_dir {tmp_path / 'out'}"
    assert run(f"{line} --epochs 1")[0] == 0
    files = contents(tmp_path / "out")
    (data / "train/03").rename(data / "train/3x")
    (data / "val/03").rename(data / "val/3x")
    message = refusal(run, f"{line} --epochs 2 --auto_resume")
    assert "'3x' in the data only" in message
    assert "'03' in the checkpoint only" in message
    for split in ("train", "val"):
        shutil.rmtree(data / split / "3x")
    assert "'03' in the checkpoint only" in refusal(run, f"{line} --epochs 2 --auto_resume")
    assert contents(tmp_path / "out") == files
    shutil.rmtree(data)
    fill(data, *map(str, range(12)))
    code, out, err = run(f"{line} --epochs 2 --auto_resume")
    assert code == 0, err
    assert "by value" in out
    record = last(tmp_path / "out")
    assert (record["epoch"], record["test_acc1"]) == (1, 100)
    assert checkpoint_file.load(tmp_path / "out/checkpoint-1.pd").meta["classes"] == PADDED


def test_a_probe_stores_its_names(run, tmp_path):
    """The accuracy on each class alone averages to that on all, so each class has its own output."""
    names = PADDED[:4]
    data, out = fill(tmp_path / "data", *names), tmp_path / "out"
    start = f"linprobe {FLAGS} --num_workers 0 --data_path"
    code, _, err = run(
        f"{start} {data} --batch_size 2 --epochs 3 --lr 1 --blr none --warmup_epochs 0 --output_dir {out}"
    )
    assert code == 0, err
    accuracies = []
    for name in [None, *names]:
        folder = data / "val" if name is None else fill(tmp_path / name, name, colors=[int(name)])
        output = run(f"{start} {data} --eval --resume {out}/checkpoint-2.pd --eval_data_path {folder}")[1]
        accuracies.append(float(re.findall(r"Acc@1 (\S+)", output)[0]))
    assert accuracies[0] == pytest.approx(np.mean(accuracies[1:]), abs=0.01)
    assert accuracies[0] > 0


def test_validation_images_of_some_classes(run, oracle, tmp_path):
    """Without their own numbers: class c of three is not class 1 of two."""
    checkpoint, data = oracle("a", "b", "c"), fill(tmp_path / "data", "a", "b", "c")
    shutil.rmtree(data / "val/b")
    shutil.copy(data / "val/c/0.png", data / "val/c/1.png")
    code, out, err = run(f"knn --model_path {checkpoint} --data_path {data} --nb_knn 1 --num_workers 0")
    assert code == 0, err
    assert "none of 'b'" in out
    assert "3 queries" in out
    assert "chance 33.3 %" in out
    majority = "always answering 'c', the most frequent class, is right for 66.7 % of the 3 validation images"
    assert majority in out
    assert re.search(r"^ +1 +100\.00", out, re.MULTILINE)
    code, out, err = run(f"compare --pixels 16 --data_path {data} --nb_knn 1 --num_workers 0")
    assert code == 0, err
    assert "| 100.0 |" in out
    assert out.splitlines()[-1] == majority
    code, out, err = run(
        f"finetune {FLAGS} {TRAIN} --epochs 1 --finetune {checkpoint} --data_path {data} --output_dir {tmp_path}/out"
    )
    assert (code, last(tmp_path / "out")["test_acc1"]) == (0, 100)
    (data / "val/a").rename(data / "val/A")
    for command in (
        f"knn --model_path {checkpoint} --nb_knn 1",
        "compare --pixels 16 --nb_knn 1",
        f"finetune {FLAGS} --output_dir {tmp_path}/other",
    ):
        assert "'A' resembles 'a'" in refusal(run, f"{command} --data_path {data}")


def test_lists_of_validation_images(run, oracle, tmp_path):
    """Labels of a list are class numbers of the training folder; labels from 1 are refused if they exceed it."""
    checkpoint, data = oracle("a", "b", "c"), fill(tmp_path / "data", "a", "b", "c")
    line = f"finetune {FLAGS} {TRAIN} --epochs 1 --finetune {checkpoint} --data_path {data} --output_dir {tmp_path}/"
    val = tmp_path / "val.txt"
    val.write_text("data/val/c/0.png 2\ndata/val/a/0.png 0\n")
    code, out, err = run(f"{line}one --eval_data_path {val}")
    assert code == 0, err
    assert last(tmp_path / "one")["test_acc1"] == 100
    assert "as class numbers" in out
    val.write_text("data/val/c/0.png 3\ndata/val/a/0.png 1\n")
    assert "start at 1" in refusal(run, f"{line}two --eval_data_path {val}")


def test_one_class_and_labels_from_1_are_noticed(run, oracle, tmp_path):
    data = fill(tmp_path / "data", "only")
    for command in (
        f"finetune {FLAGS} {TRAIN} --epochs 1 --output_dir {tmp_path / 'one'}",
        f"linprobe {FLAGS} --batch_size 2 --epochs 1 --warmup_epochs 0 --num_workers 0 --output_dir {tmp_path}/probe",
        f"knn --model_path {oracle('a', 'b')} --nb_knn 1 --num_workers 0",
        "compare --pixels 16 --nb_knn 1 --num_workers 0",
    ):
        _, out, err = run(f"{command} --data_path {data}")
        assert "one class only, 'only': accuracy is 100 %" in out + err, command
    (tmp_path / "train.txt").write_text("data/train/only/0.png 1\ndata/val/only/0.png 2\n")
    line = f"finetune {FLAGS} {TRAIN} --epochs 1 --disable_eval_during_finetuning --data_path {tmp_path}/train.txt"
    code, out, err = run(f"{line} --output_dir {tmp_path}/three")
    assert code == 0
    assert "no label 0, only 1 to 2" in out + err
    assert "subtract 1" in refusal(run, f"{line} --output_dir {tmp_path}/two --nb_classes 2").splitlines()[-1]
