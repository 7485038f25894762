"""Several labels per image, and numbers: training, resume, evaluation, prediction and export."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.config.export import ExportConfig
from plsc_mae.export.content import open_content
from plsc_mae.export.example import example_text
from plsc_mae.export.targets import load_target
from plsc_mae.methods.label_kinds import LabelSets, Numbers
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = [pytest.mark.compat, pytest.mark.once]
SIZES = "--model vit_base_patch16 --input_size 16 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 --num_workers 0"
SHORT = "--batch_size 8 --epochs 4 --warmup_epochs 0 --lr 3e-3 --blr none --layer_decay 1.0 --drop_path 0 --aa none"
SHORT_PROBE = "--epochs 1 --warmup_epochs 0 --batch_size 8 --overwrite"
LABELS = {"multilabel": ["red", "green", "blue"], "regression": ["red", "blue"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pictures of one color. Labels: the channels above 128; or red in thousands, and blue; some are unknown."""
    root = tmp_path_factory.mktemp("tables")
    colors = np.random.default_rng(0).integers(0, 256, (44, 3))
    rows: dict[str, list[list[str]]] = {}
    for number, color in enumerate(colors):
        (root / "images").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), tuple(color.tolist())).save(root / f"images/{number}.png")
        split = "train" if number < 32 else "val"
        path, unknown = f"images/{number}.png", number % 9 == 4
        truth = [str(int(value > 128)) for value in color]
        rows.setdefault(f"multilabel/{split}", []).append([path, *truth[:2], "" if unknown else truth[2]])
        blue = "" if unknown else str(color[2])
        rows.setdefault(f"regression/{split}", []).append([path, str(1000 * color[0]), blue])
    for name, lines in rows.items():
        task = name.split("/")[0]
        (root / task).mkdir(exist_ok=True)
        (root / task / "images").is_symlink() or (root / task / "images").symlink_to(root / "images")
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", *LABELS[task]], *lines])
    return root


@pytest.fixture(scope="module")
def train(data, tmp_path_factory):
    """Fine-tune in a new folder, or with further flags; gives the folder."""
    done: dict[str, Path] = {}

    def run(task: str, flags: str = "", folder: Path | None = None) -> Path:
        key = f"{task} {flags} {folder}"
        if key not in done:
            done[key] = folder or tmp_path_factory.mktemp("run")
            line = f"finetune {SIZES} {SHORT} --task {task} --data_path {data}/{task} --output_dir {done[key]} {flags}"
            assert main(line.split()) == 0
        return done[key]

    return run


def last_epoch(folder: Path) -> dict[str, float]:
    return json.loads((folder / "log.txt").read_text().splitlines()[-1])


def truth_of(data: Path, task: str) -> np.ndarray:
    with (data / task / "val.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(cell) if cell else np.nan for cell in row[1:]] for row in rows])


def predictions(checkpoint: Path, data: Path, tmp_path: Path) -> dict[str, dict]:
    """What `predict` writes for all images, by name."""
    line = f"predict --model_path {checkpoint} --img_path {data}/images --num_workers 0 --save_path {tmp_path}/p.jsonl"
    assert main(line.split()) == 0
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    return {entry["image"]: entry for entry in map(json.loads, lines)}


def evaluate(data: Path, task: str, folder: Path, tmp_path: Path, flags: str = "") -> dict[str, float]:
    line = f"finetune {SIZES} --eval --resume {folder}/checkpoint-3.pd --data_path {data}/{task} {flags}"
    assert main([*line.split(), "--save_path", str(tmp_path / "result")]) == 0
    return json.loads((tmp_path / "result/metrics.json").read_text())


def test_several_labels(train, data, tmp_path, capfd):
    metrics = pytest.importorskip("sklearn.metrics")
    folder = train("multilabel")
    stored = checkpoint_file.load(folder / "checkpoint-3.pd")
    assert stored.meta["classes"] == LABELS["multilabel"]
    assert (folder / "checkpoint-best.pd").exists()
    start = json.loads((folder / "history.jsonl").read_text().splitlines()[0])
    assert start["chance"] == LabelSets().chance(truth_of(data, "multilabel").astype(np.float32))
    entries = predictions(folder / "checkpoint-3.pd", data, tmp_path)
    truth, columns = truth_of(data, "multilabel"), LABELS["multilabel"]
    probabilities = np.array(
        [
            [dict(zip(entry["classes"], entry["probabilities"], strict=True))[name] for name in columns]
            for entry in (entries[f"{number}.png"] for number in range(32, 44))
        ]
    )
    known = np.isfinite(truth)
    expected = [metrics.average_precision_score(truth[k, i], probabilities[k, i]) for i, k in enumerate(known.T)]
    f1 = [metrics.f1_score(truth[k, i], probabilities[k, i] > 0.5, zero_division=0) for i, k in enumerate(known.T)]
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    losses = -(truth * np.log(clipped) + (1 - truth) * np.log(1 - clipped))
    capfd.readouterr()
    found = evaluate(data, "multilabel", folder, tmp_path)  # the checkpoint knows its task
    assert found["mAP"] == pytest.approx(100 * np.mean(expected), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(100 * np.mean(f1))
    assert found["loss"] == pytest.approx(np.nanmean(losses, axis=1).mean(), rel=1e-4)
    assert last_epoch(folder)["test_mAP"] == pytest.approx(found["mAP"])
    assert "\n* mAP " in capfd.readouterr().out
    with (tmp_path / "result/labels.csv").open(newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert float(rows["blue"]["average_precision"]) == pytest.approx(100 * expected[2], abs=1e-4)
    assert int(rows["blue"]["unknown"]) == (~known[:, 2]).sum()


def test_numbers(train, data, tmp_path, capfd):
    metrics = pytest.importorskip("sklearn.metrics")
    folder = train("regression")
    entries = predictions(folder / "checkpoint-3.pd", data, tmp_path)
    assert entries["0.png"]["classes"] == LABELS["regression"]
    truth = truth_of(data, "regression")
    values = np.array([entries[f"{number}.png"]["values"] for number in range(32, 44)])
    known = np.isfinite(truth)
    found = evaluate(data, "regression", folder, tmp_path)
    for name, score in (("mean_abs_error", metrics.mean_absolute_error), ("r2", metrics.r2_score)):
        expected = np.mean([score(truth[k, i], values[k, i]) for i, k in enumerate(known.T)])
        assert found[name] == pytest.approx(expected, rel=1e-4)
        assert last_epoch(folder)[f"test_{name}"] == pytest.approx(found[name], rel=1e-6)
    out = capfd.readouterr().out
    assert "R2" in out
    assert any(line.endswith("  red") and "%" not in line for line in out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("task", list(LABELS))
def test_resume_with_reordered_columns(train, data, task, tmp_path):
    """A run that stops and resumes gives the same bits, also if the columns of the file have another order."""
    whole = checkpoint_file.load(train(task) / "checkpoint-3.pd")
    train(task, "--max_train_step 6", tmp_path)
    turned = tmp_path / "turned"
    turned.mkdir()
    (turned / "images").symlink_to(data / "images")
    for split in ("train", "val"):
        with (data / task / f"{split}.csv").open(newline="") as file:
            rows = [[row[0], *row[:0:-1]] for row in csv.reader(file)]
        with (turned / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    line = f"finetune {SIZES} {SHORT} --task {task} --data_path {turned} --output_dir {tmp_path} --auto_resume"
    assert main(line.split()) == 0
    resumed = checkpoint_file.load(tmp_path / "checkpoint-3.pd")
    assert resumed.meta["classes"] == whole.meta["classes"]
    for name, value in whole.model.items():
        np.testing.assert_array_equal(np.asarray(resumed.model[name]), np.asarray(value), err_msg=name)
    assert last_epoch(tmp_path)["test_loss"] == last_epoch(train(task))["test_loss"]


@pytest.mark.slow
def test_mixing_fractions_and_probes(train, data, tmp_path, capfd):
    folder = train("multilabel", "--mixup 0.8 --cutmix 1.0 --train_fraction 0.5 --model_ema --epochs 1", tmp_path / "m")
    assert "16 of 32 training images" in capfd.readouterr().out
    assert np.isfinite(last_epoch(folder)["train_loss"])
    assert "ema_test_mAP" in last_epoch(folder)
    for flags in ("", "--cache_features"):
        line = f"linprobe {SIZES} --task regression --data_path {data}/regression --output_dir {tmp_path}/p {flags}"
        assert main([*line.split(), *SHORT_PROBE.split()]) == 0
        assert np.isfinite(last_epoch(tmp_path / "p")["test_rmse"])


def test_mistakes_are_refused(train, data, tmp_path, capfd):
    folder = train("multilabel")
    line = f"finetune {SIZES} --eval --resume {folder}/checkpoint-3.pd --data_path {data}/regression"
    capfd.readouterr()
    for flags, mentioned in (
        ("", "--label_columns"),
        ("--task regression", "--task multilabel"),
        ("--eval_set imagenet-a", "--eval_set imagenet-a"),
    ):
        assert main(f"{line} {flags}".split()) == 2
        assert mentioned in capfd.readouterr().err
    line = f"finetune {SIZES} {SHORT} --data_path {data}/regression --task regression --output_dir {tmp_path}"
    assert main(f"{line} --resume {folder}/checkpoint-3.pd".split()) == 2
    assert "multilabel" in capfd.readouterr().err
    assert main(f"finetune {SIZES} --task multilabel --data_path {data}/images --output_dir {tmp_path}".split()) == 2
    assert "train.csv" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("task", "code", "problem"),
    [
        ("multilabel", "1 / (1 + np.exp(-logits))", "multi_label_classification"),
        ("regression", "logits * ", "regression"),
    ],
)
def test_exports_show_the_labels(train, tmp_path, task, code, problem):
    config = ExportConfig(target="timm", model_path=str(train(task) / "checkpoint-3.pd"), save_path="unused")
    content = open_content(config, ("classifier",))
    assert content.classes == tuple(LABELS[task])
    assert ("sigmoid" in content.outputs["logits"]) == (task == "multilabel")
    text = example_text(load_target("timm"), content)
    assert code in text
    compile(text, "example.py", "exec")
    load_target("huggingface").write(content, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["problem_type"], list(settings["label2id"])) == (problem, LABELS[task])


def test_a_number_that_is_unknown_in_all_images_is_taken_as_0():
    labels = np.array([[1, np.nan], [3, np.nan], [np.nan, np.nan]], np.float32)
    with np.errstate(all="raise"):
        kind = Numbers().fit(labels)
    assert (kind.mean.tolist(), kind.std.tolist()) == ([2, 0], [1, 1])
