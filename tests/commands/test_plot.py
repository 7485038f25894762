"""The loss curve of a run as a picture."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from plsc_mae.cli import main


@pytest.fixture
def run_dir(tmp_path):
    records = [{"run": "r", "step": i, "loss": 2.0 - 0.01 * i, "lr": 1e-4 * i} for i in range(50)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_the_curve_of_a_real_run(trained, tmp_path, capsys):
    assert main(["plot", str(trained()), "--save_path", str(tmp_path / "curve.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (840, 480)
        assert len(picture.convert("RGB").getcolors(100_000)) > 50


def test_it_lands_beside_the_log(run_dir, capsys):
    assert main(["plot", str(run_dir)]) == 0
    assert (run_dir / "loss.png").stat().st_size > 1000


def test_several_metrics_share_a_picture(trained, tmp_path):
    curves = {}
    for metrics in (["grad_norm"], ["grad_norm", "loss"]):
        path = tmp_path / f"{len(metrics)}.png"
        assert main(["plot", str(trained()), "--metrics", *metrics, "--save_path", str(path)]) == 0
        with Image.open(path) as picture:
            colors = {color for _, color in picture.convert("RGB").getcolors(100_000)}
        curves[len(metrics)] = (44, 160, 44) in colors  # the second curve's green
    assert curves == {1: False, 2: True}


def test_losses_of_trivial_predictors_are_lines_beside_their_loss(run_dir):
    losses = {"mean_color": 1.8, "bilinear": 1.6, "zero": 90.0}
    drawn = []
    for loss, metric in ((None, "loss"), ("loss", "loss"), ("loss", "lr"), ("loss_main", "loss")):
        if loss:
            record = json.dumps({"run": "r", "loss": loss, "losses": losses})
            (run_dir / "trivial_losses.json").write_text(record + "\n")
        path = run_dir / "curve.svg"
        assert main(["plot", str(run_dir), "--metrics", metric, "--save_path", str(path)]) == 0
        drawn.append(path.read_text().count("stroke-dasharray: 3.7"))
    assert drawn == [0, 2, 0, 0]  # the loss of zeros is too large to be drawn


def test_damaged_losses_of_trivial_predictors_are_left_out(run_dir):
    (run_dir / "trivial_losses.json").write_text('{"loss": "loss", "losses": {"zero": null}}')
    assert main(["plot", str(run_dir)]) == 0


def test_metrics_of_epochs_are_in_log_txt(run_dir, capsys):
    seen = {"knn_acc1": 30.0, "feature_cosine": 0.9}
    lines = [{"epoch": i, "step": 10 * i, "train_loss": 1.0, **(seen if i % 2 else {})} for i in range(5)]
    (run_dir / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for words in (["knn_acc1"], ["loss", "knn_acc1", "feature_cosine"], ["train_loss"]):
        assert main(["plot", str(run_dir), "--metrics", *words]) == 0
        assert (run_dir / f"{words[0]}.png").stat().st_size > 1000
    assert main(["plot", str(run_dir), "--metrics", "knn_acc"]) == 2
    assert "did you mean 'knn_acc1'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the run's output folder: plsc-mae plot RUN_DIR"),
        (["RUN/none"], "none/train.jsonl does not exist; expected the output folder of a training run"),
        (["RUN", "--save_path", "RUN/train.jsonl/x.png"], "choose another --save_path"),
        (["RUN", "--save_path", "RUN/curve.foo"], "end --save_path in .png"),
        (["RUN", "two"], "unexpected word 'two'"),
        (["RUN", "--metrics", "los"], "did you mean 'loss'?; they have "),
        (["RUN", "--metrics", "run"], "--metrics run has no numbers in "),
    ],
)
def test_mistakes_are_sentences(run_dir, capsys, words, told):
    assert main(["plot", *(word.replace("RUN", str(run_dir)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("plsc-mae: error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["loss.png", "x.svg", "x.jpg", "x.pdf", "x.tif", "x.webp"])
def test_pictures_of_the_user_are_kept(run_dir, capsys, name):
    words = ["plot", str(run_dir), "--save_path", str(run_dir / name)]
    for _ in range(2):  # its own picture is replaced
        assert main(words) == 0
    (run_dir / name).write_bytes(b"mine")
    capsys.readouterr()
    assert main(words) == 2
    assert f"{run_dir / name}: it exists" in capsys.readouterr().err
    assert (run_dir / name).read_bytes() == b"mine"


def test_a_run_folder_whose_name_is_not_utf8(run_dir):
    folder = run_dir / os.fsdecode("狗".encode("gbk"))
    folder.mkdir()
    (run_dir / "train.jsonl").rename(folder / "train.jsonl")
    assert main(["plot", str(folder)]) == 0
    assert (folder / "loss.png").stat().st_size > 1000


def test_a_line_that_a_kill_has_damaged_is_left_out(run_dir):
    with (run_dir / "train.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert main(["plot", str(run_dir)]) == 0
