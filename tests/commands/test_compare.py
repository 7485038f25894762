"""The table of raw pixels, random weights and checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.commands import compare as command

pytestmark = [pytest.mark.compat, pytest.mark.once]

ROOT = Path(__file__).parents[2]
FEW = "--nb_knn 5 --num_workers 0"  # the bank has 30 images


@pytest.fixture
def compare(capfd):
    """Run the command; gives the exit code, the lines of stdout, and stderr."""

    def run(flags: str) -> tuple[int, list[str], str]:
        capfd.readouterr()
        code = main(["compare", *flags.split()])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return run


@pytest.mark.long
def test_a_row_for_everything_that_is_compared(trained, trained_cae, images, compare, tmp_path):
    mae, cae = trained() / "checkpoint-1.pd", trained_cae()
    flags = f"--data_path {images} --model_path {mae} {cae} {FEW}"
    code, lines, err = compare(f"{flags} --pixels 16 --random_weights --seeds 0 1 --save_path {tmp_path}/new/table.md")
    assert (code, err) == (0, "")
    assert lines[:2] == ["| features | k-NN (k = 5) | linear |", "|---|--:|--:|"]
    assert [line.split(" | ")[0] for line in lines[2:-2]] == [
        "| raw pixels, 16 x 16",
        f"| random weights, sizes of {mae}",
        f"| random weights, sizes of {cae}",
        f"| {mae}",
        f"| {cae}",
    ]
    assert [line.count(" to ") for line in lines[2:-2]] == [0, 2, 2, 0, 0]  # two seeds have a range
    assert (tmp_path / "new/table.md").read_text().splitlines() == lines
    # The same numbers alone, and in a file for programs.
    assert compare(f"{flags} --save_path {tmp_path}/table.json")[1] == [*lines[:2], *lines[5:]]
    rows = json.loads((tmp_path / "table.json").read_text())
    for row, line in zip(rows, lines[5:-2], strict=True):
        assert line == f"| {row['features']} | {row['knn'][0]:.1f} | {row['linear'][0]:.1f} |"


def test_the_table_is_whole(images, compare, monkeypatch, tmp_path):
    """Nothing that the encoding prints is between its lines; and a failure keeps the rows that are done.

    A file that cannot be read fails before the first row.
    """
    encode = command.encode_labeled

    def noisy(*given, **named):
        print("encoding")
        return encode(*given, **named)

    monkeypatch.setattr(command, "encode_labeled", noisy)
    flags = f"--data_path {images} --pixels 8 {FEW}"
    assert [line[:10] for line in compare(flags)[1][:4]] == ["encoding", "| features", "|---|--:|-", "| raw pixe"]
    np.savez(tmp_path / "none.npz", a=np.zeros(1))
    code, lines, err = compare(f"{flags} --model_path {tmp_path}/none.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert lines[-1].startswith("| raw pixels, 8 x 8 | ")
    code, lines, err = compare(f"{flags} --model_path {tmp_path}/none.npz {tmp_path}/missing.pd")
    assert (code, lines) == (2, [])
    assert "missing.pd cannot be opened" in err


def test_accuracies_of_the_bank_itself(trained, images, compare):
    """Each image is its own nearest neighbor; and what knn says of validation images is said here."""
    model = trained() / "checkpoint-1.pd"
    same = f"--model_path {model} --data_path {images}/train --eval_data_path {images}/train --nb_knn 1 --num_workers 0"
    code, lines, _ = compare(same)
    assert code == 0
    assert lines[2].startswith(f"| {model} | 100.0 | ")


@pytest.mark.long
def test_two_processes_give_what_one_gives(trained, images, compare, by_two, tmp_path):
    flags = f"--model_path {trained() / 'checkpoint-1.pd'} --data_path {images} --pixels 16 {FEW}"
    code, one, _ = compare(flags)
    assert code == 0
    by_two(f"compare {flags} --save_path two.md")
    assert (tmp_path / "two.md").read_text().splitlines() == one


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--pixels 16", "--data_path is required: a folder with train/ and val/"),
        ("--data_path DATA", "nothing to compare; name checkpoints with --model_path, or --pixels SIDE"),
        ("--data_path DATA --pixels 16 --random_weights", "--random_weights takes its sizes from checkpoints"),
        ("--data_path DATA --pixels 16 --save_path table.txt", "expected a file that ends in .md or .json"),
        ("--data_path DATA --pixels 16 --nb_knn 31 --num_workers 0", "--nb_knn 31 exceeds the 30 images"),
        ("--data_path DATA/val --pixels 16", "val has no folders train/ and val/"),
        ("--data_path DATA --pixels 16 --nb_knn 5 --num_workers 0 --save_path DATA/demo.json/x.md", "cannot write"),
    ],
)
def test_mistakes_are_sentences(images, compare, flags, told):
    code, _, err = compare(flags.replace("DATA", str(images)))
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert told in err
    assert err.count("\n") == 1


def test_unreadable_images_are_left_out_of_every_row_and_named_once(trained, images, compare, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(images, folder)
    bad = sorted((folder / "val").glob("*/*.jpg"))[3]
    bad.write_bytes(b"")
    flags = f"--data_path {folder} --model_path {trained()}/checkpoint-1.pd --pixels 8 {FEW}"
    code, lines, err = compare(f"{flags} --save_path {tmp_path}/table.md")
    assert code == 1
    assert len(lines) == 6
    assert lines[-1].endswith("is right for 11.1 % of the 9 validation images")
    assert err.count(str(bad)) == 1
    assert "1 of 40 images" in err
    assert compare(f"{flags} --save_path {tmp_path}/table.md")[0] == 1  # replaces its own table
    (tmp_path / "mine.md").write_text("# Notes\n")
    code, _, err = compare(f"{flags} --save_path {tmp_path}/mine.md")
    assert code == 2
    assert "mine.md: it exists" in err
    assert (tmp_path / "mine.md").read_text() == "# Notes\n"
