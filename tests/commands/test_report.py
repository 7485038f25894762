"""The report is one file, says what the logs say, and lives with runs that lack something."""

from __future__ import annotations

import json
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.commands import report_pictures
from plsc_mae.commands.runs import _differing_options
from plsc_mae.report.run_folder import RunFolder
from plsc_mae.report.verdict import ADVICE, ADVICE_PAGES


class Links(HTMLParser):
    """Targets of all attributes that load or link something, and the values of all numbers."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.numbers, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "poster", "background"):
                self.targets.append(value)
            if (tag, name) == ("data", "value"):
                self.numbers.append(float(value))


def report(folder, *flags):
    assert main(["report", str(folder), *flags]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def assert_self_contained(text):
    found = Links(text)
    assert all(target.startswith(("#", "data:image/")) or target.endswith(ADVICE_PAGES) for target in found.targets)
    assert "http" not in text
    assert "url(" not in text
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    return found


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of a short run with evaluations."""
    return shutil.copytree(trained("--online_probe --knn_freq 1 --knn_k 3"), tmp_path / "run")


def test_a_run_of_pretraining(run_dir, capsys):
    text = report(run_dir)
    found = assert_self_contained(text)
    last = json.loads((run_dir / "log.txt").read_text().splitlines()[-1])
    numbers = {value for value in last.values() if isinstance(value, (int, float))}
    trivial = json.loads((run_dir / "trivial_losses.json").read_text())["losses"]
    assert numbers | set(trivial.values()) <= set(found.numbers)
    assert found.tags.count("svg") > 5
    assert found.tags.count("img") >= 2 * 2 + 1  # two images at least at two times, and a sheet
    assert "Not in this report" not in text
    assert "<title>run: plsc-mae report</title>" in text
    answer, *advice, path = capsys.readouterr().out.splitlines()[-3 if ADVICE in text else -2 :]
    assert advice == [f"{ADVICE} {', '.join(ADVICE_PAGES)}"] * (ADVICE in text)  # the run is over, not early
    assert answer in unescape(text)
    assert answer.startswith(
        ("Yes: the loss is", "Barely: the loss is", "In part: the loss is", "Not yet: the loss is")
    )
    assert path == str(run_dir / "report.html")


@pytest.mark.parametrize(
    ("loss", "answer"), [(0.89, "Yes"), (0.91, "Barely"), (1.5, "In part"), (1.99, "Not yet"), (5.0, "Not yet")]
)
def test_the_answer(run_dir, capsys, loss, answer):
    levels = {"mean_color": 2.0, "bilinear": 1.0}
    (run_dir / "trivial_losses.json").write_text(json.dumps({"loss": "loss", "images": 1, "losses": levels}))
    (run_dir / "log.txt").write_text(json.dumps({"epoch": 0, "step": 3, "train_loss": loss}) + "\n")
    text = report(run_dir, "--max_images", "0")
    out = capsys.readouterr().out
    for page in ADVICE_PAGES:  # in English and in Chinese
        assert (page in out) == (f">{page}</a>" in text) == (answer != "Yes")
    assert out.startswith(f"{answer}: the loss is {loss:.4g}")
    assert ("not below" in out) == (answer not in ("Yes", "Barely"))
    assert ("only 0.5% below" in out) == (loss == 1.99)
    assert ("`plsc-mae reconstruct` shows what it draws" in out) == (answer == "Barely")


def test_a_run_of_an_earlier_version(run_dir):
    for name in ("trivial_losses.json", "history.jsonl", "config.yaml", "run.json", "vdlrecords.run.log"):
        (run_dir / name).unlink()
    (run_dir / "log.txt").write_text((run_dir / "log.txt").read_text() + '{"torn')
    text = report(run_dir)
    assert_self_contained(text)
    lacking = text[text.index("Not in this report</h2>") :]
    for name in ("trivial_losses.json", "history.jsonl", "config.yaml", "vdlrecords.run.log", "--img_path"):
        assert name in lacking


def test_a_classifier(classifier):
    text = report(classifier.parent, "--max_images", "0")
    assert_self_contained(text)
    assert "confusion" in text
    assert "Trivial predictors" not in text


def test_the_attention_is_that_of_the_classified_tokens(classifier, run_dir, monkeypatch):
    """The classifier pools the patch tokens, although its encoder has a class token too."""
    drawn = []
    compose = report_pictures.compose
    monkeypatch.setattr(report_pictures, "compose", lambda panels: drawn.append([*panels][1]) or compose(panels))
    for folder in (classifier.parent, run_dir):
        report(folder, "--max_images", "1")
    assert drawn == ["attention of the patch tokens, last layer", "attention of the class token, last layer"]


def test_the_pictures_of_the_encoder_as_a_file(run_dir, tmp_path, capsys):
    panel = tmp_path / "tokens.png"
    report(run_dir, "--max_images", "2", "--panel_path", str(panel))
    with Image.open(panel) as picture:
        assert picture.width > 3 * 224
        assert picture.height > 2 * 224
    assert str(panel) in capsys.readouterr().out.splitlines()
    panel.write_bytes(b"of the user")
    assert main(["report", str(run_dir), "--panel_path", str(panel)]) == 2
    assert "--panel_path" in capsys.readouterr().err
    assert panel.read_bytes() == b"of the user"


def test_tables_and_mistakes(run_dir, capsys):
    table = run_dir / "table.md"
    table.write_text("| features | k-NN (k = 10) | linear |\n|---|--:|--:|\n| raw <b> | 18.5 | 13.4 |\n")
    rows = [{"features": "pixels", "knn": [1.0, 2.0], "linear": [3.25]}]
    (run_dir / "table.json").write_text(json.dumps(rows))
    flags = ["--max_images", "0", "--tables"]
    text = report(run_dir, *flags, str(table), str(run_dir / "table.json"))
    assert "raw &lt;b&gt;" in text
    assert {1.5, 3.25} <= set(assert_self_contained(text).numbers)
    (run_dir / "mine.html").write_text("mine")
    for words, expected in (
        (["report"], "plsc-mae report RUN_DIR"),
        (["report", str(run_dir / "none")], "train.jsonl"),
        (["report", str(run_dir), *flags, str(run_dir / "log.txt")], "--tables"),
        (["report", str(run_dir), "--save_path", str(run_dir / "mine.html")], "choose another --save_path"),
    ):
        assert main(words) == 2
        assert expected in capsys.readouterr().err


def test_runs_have_their_best_accuracy(run_dir, tmp_path, capsys):
    lines = [{"epoch": i, "step": i + 1, "test_acc1": value} for i, value in enumerate((40.0, 55.5, 50.0))]
    (run_dir / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["runs", str(run_dir), "--save_path", str(tmp_path / "runs.html")]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in words if "test_acc1" in row] == [["test_acc1", "50"], ["best", "test_acc1", "55.5"]]


def test_runs_show_the_encoder_behind_different_names():
    tiny = {"model": "mae_vit_tiny_patch16", "phase": "pretrain", "depth": None}
    same = {"model": "vit_base_patch16", "phase": "finetune", "embed_dim": 192, "num_heads": 3}

    def rows(*options: dict) -> dict:
        runs = [RunFolder(Path("run"), "", given, (), (), (), {}, {}) for given in options]
        return {name: values for name, *values in _differing_options(runs)}

    encoder = "192 wide, 12 blocks, 3 heads, patch 16"
    assert rows(tiny, same) == {
        "encoder": [encoder, encoder],
        "model": ["mae_vit_tiny_patch16", "vit_base_patch16"],
        "phase": ["pretrain", "finetune"],
    }
    assert rows(tiny, {**tiny, "depth": 4}) == {"encoder": [encoder, encoder.replace("12", "4")]}
    assert rows(tiny, {**tiny, "model": "of a later version"})["model"][1] == "of a later version"


def test_runs_side_by_side(run_dir, trained, tmp_path, capsys):
    other = trained()
    assert main(["runs", str(run_dir), str(other), "--save_path", str(tmp_path / "runs.html")]) == 0
    out = capsys.readouterr().out
    words = [line.split() for line in out.splitlines()]
    assert ["knn_freq", "1", "0"] in words
    assert ["epochs", "2", "2"] not in words
    losses = [json.loads((x / "log.txt").read_text().splitlines()[-1])["train_loss"] for x in (run_dir, other)]
    assert ["train_loss", *(f"{loss:.4g}" for loss in losses)] in words
    text = (tmp_path / "runs.html").read_text()
    assert set(losses) <= set(assert_self_contained(text).numbers)
    assert "No run follows a recipe" in text
    assert main(["runs"]) == 2
