"""The demo data command draws a folder once and says what is in it."""

from __future__ import annotations

import pytest

from plsc_mae.cli import main
from plsc_mae.data.imagefolder import find_images


def test_it_draws_once_and_tells(tmp_path, capsys):
    words = f"demo-data {tmp_path}/demo --image_size 16 --train_per_class 2 --val_per_class 1".split()
    for state in ("drawn", "already there"):
        assert main(words) == 0
        (told,) = capsys.readouterr().out.splitlines()
        assert told == f"{tmp_path}/demo: 20 training and 10 validation images of 10 classes, {state}"
    assert len(find_images(tmp_path / "demo", "train")) == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "plsc-mae demo-data DIR"),
        (["FILE"], "FILE is a file"),
        (["FILE/below"], "cannot write the demo data to FILE/below"),
        (["new", "--image_size", "4"], "--image_size must lie in [16, 1024], got 4"),
    ],
)
def test_mistakes_are_sentences(tmp_path, capsys, words, told):
    file = tmp_path / "notes.txt"
    file.touch()
    assert main(["demo-data", *(word.replace("FILE", str(file)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("plsc-mae: error: ")
    assert told.replace("FILE", str(file)) in err
    assert err.count("\n") == 1
