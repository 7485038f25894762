"""CSV files of labels."""

from __future__ import annotations

import os

import numpy as np
import pytest

from plsc_mae.data.label_table import label_notes, label_table, match_labels, read_labels
from plsc_mae.errors import DataError

NAN = np.nan


@pytest.fixture
def table(tmp_path):
    """Write a CSV file beside the empty files a.png and b.png; return its path."""
    for name in "ab":
        (tmp_path / f"{name}.png").touch()

    def write(text: str, name: str = "train.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_columns_of_zeros_and_ones(table):
    images = read_labels(table("\ufefffile,cat,dog\na.png,1,0\nb.png,,True\n"), binary=True)
    assert images.classes == ("cat", "dog")
    np.testing.assert_array_equal(images.labels, np.array([[1, 0], [NAN, 1]], np.float32))
    assert images.labels.dtype == np.float32
    assert images.path(1).endswith("b.png")


@pytest.mark.parametrize(
    "text", ["file;sex;age\na.png;m;40\nb.png;f;1e3\n", "file\tsex\tage\na.png\tm\t40\nb.png\tf\t1e3\n"]
)
def test_numbers_in_chosen_columns(table, text):
    images = read_labels(table(text), binary=False, columns=["age"])
    assert images.classes == ("age",)
    assert images.labels.tolist() == [[40], [1000]]
    with pytest.raises(DataError, match=r"row 2 .*'m'.*--label_columns"):
        read_labels(table(text), binary=False)
    with pytest.raises(DataError, match=r"'size'.*'sex', 'age'"):
        read_labels(table(text), binary=False, columns=["size"])


def test_a_column_of_names(table):
    images = read_labels(table("file,found\na.png,cat|big dog\nb.png,\n"), binary=True)
    assert images.classes == ("big dog", "cat")
    assert images.labels.tolist() == [[1, 1], [0, 0]]
    later = read_labels(table("file,found\na.png,cat;ant\n"), binary=True, known=images.classes)
    assert later.classes == ("ant", "big dog", "cat")
    assert match_labels(later, images.classes, "train").labels.tolist() == [[0, 1]]


def test_rows_without_labels_are_left_out(table, caplog):
    images = read_labels(table("file,age\na.png,\nb.png,3\n"), binary=False)
    assert (len(images), images.labels.tolist()) == (1, [[3]])
    assert "1 of 2 rows" in caplog.text


def test_labels_are_matched_by_name(table):
    images = read_labels(table("file,dog,fox,cat\na.png,1,0,0\n"), binary=True)
    matched = match_labels(images, ("cat", "dog"), "the training file")
    assert matched.classes == ("cat", "dog")
    assert matched.labels.tolist() == [[0, 1]]
    with pytest.raises(DataError, match="'owl' of the training file"):
        match_labels(images, ("cat", "owl"), "the training file")
    known = read_labels(table("file,who,dog,cat\na.png,me,1,0\n"), binary=True, known=("cat", "dog"))
    assert known.labels.tolist() == [[0, 1]]  # other columns need not be labels


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("file,cat\na.png,-1\n", "'-1'"),
        ("file,cat\na.png,2\n", "'2'"),
        ("file,cat,cat\na.png,1,1\n", "same name"),
        ("file,cat,dog\na.png,1\n", "2 cells; expected 3"),
        ("file\na.png\n", "no labels"),
        ("file,cat,dog\n", "no labels"),
        ("file,cat,dog\na.png,,\n", "no row with a label"),
        ("file,cat,dog\nc.png,1,0\n", "c.png"),
        ("a.png,1\na.png,0\n", "names of the columns"),
    ],
)
def test_mistakes_are_refused(table, text, mentioned):
    with pytest.raises(DataError) as error:
        read_labels(table(text), binary=True, columns=["cat"] if "-1" in text or ",2" in text else None)
    assert mentioned in str(error.value)


@pytest.mark.parametrize("number", ["x", "inf", "1e39"])
def test_a_number_that_does_not_fit_is_refused(table, number):
    with pytest.raises(DataError, match=number):
        read_labels(table(f"file,age\na.png,{number}\n"), binary=False)


def test_the_file_of_a_split(table, tmp_path):
    file = table("file,cat\na.png,1\n")
    assert label_table(str(tmp_path), "train", flag="--data_path") == file
    assert label_table(str(file), "val", flag="--data_path") == file
    with pytest.raises(DataError, match=r"--data_path .*val\.csv"):
        label_table(str(tmp_path), "val", flag="--data_path")


def test_constant_labels_are_noticed(table):
    images = read_labels(table("file,cat,dog\na.png,1,1\nb.png,1,0\n"), binary=True)
    (note,) = label_notes(images)
    assert "'cat'" in note
    assert "'dog'" not in note


@pytest.mark.parametrize("on_disk", ["狗.png", os.fsdecode("狗.png".encode("gbk"))])
def test_a_table_in_gbk_is_read(tmp_path, caplog, on_disk):
    (tmp_path / on_disk).touch()
    (tmp_path / "train.csv").write_bytes("文件,猫,犬\r\n狗.png,1,0\r\n".encode("gbk"))
    images = read_labels(tmp_path / "train.csv", binary=True)
    assert images.classes == ("猫", "犬")
    assert list(images.paths) == [on_disk]
    assert all(part in caplog.text for part in ("0xce", "line 1", "GBK"))
