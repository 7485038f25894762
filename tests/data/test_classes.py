"""Classes are matched by name; classes that cannot be matched are refused with their names."""

from __future__ import annotations

import logging
import unicodedata
from typing import NamedTuple

import numpy as np
import paddle
import pytest

from plsc_mae.data.classes import (
    ClassOrder,
    Reference,
    class_warnings,
    label_warnings,
    match_images,
    sorted_as_text,
)
from plsc_mae.errors import CheckpointError, DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]
TWELVE = [f"{number:02d}" for number in range(12)]
UNPADDED = sorted(str(number) for number in range(12))  # 0, 1, 10, 11, 2, ...


@pytest.fixture(autouse=True)
def log(caplog, monkeypatch):
    """Collect log records, also after a command has detached the package's logger from the root logger."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    caplog.set_level(logging.INFO, "plsc_mae")
    return caplog


class Images(NamedTuple):
    """An image of every class."""

    classes: tuple[str, ...]
    labels: np.ndarray
    numbered: bool = False
    source: str = "DATA"
    numbers_are_named: bool = False


def folders(*names: str) -> Images:
    return Images(names, np.arange(len(names)))


def listed(*labels: int) -> Images:
    return Images(tuple(map(str, range(max(labels) + 1))), np.array(labels), numbered=True)


def match(images: Images, *known: str):
    return match_images(images, Reference(known, "FILE", "REMEDY"))


@pytest.mark.parametrize(
    ("images", "known", "labels", "mentioned"),
    [
        (folders("a", "b"), ["a", "b"], [0, 1], []),
        (folders("b", "c"), ["a", "b", "c"], [1, 2], ["2 of the 3 classes of FILE", "none of 'a'", "all 3 classes"]),
        (folders("a", "b"), ["b", "a"], [1, 0], ["by name", "'b' is class 0"]),
        (folders("cat", "a cat"), ["a cat", "cat"], [1, 0], ["by name"]),
        (folders(*UNPADDED), TWELVE, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9], ["by value"]),
        (folders(*TWELVE), UNPADDED, [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3], ["by value"]),
        (
            folders("7", "10"),
            TWELVE,
            [7, 10],
            ["by value", "2 of the 12 classes", "'00', '01', '02', '03', '04' and 5"],
        ),
        (folders(unicodedata.normalize("NFD", "Hündin")), ["Hund", "Hündin"], [1], ["composed Unicode", "'Hund'"]),
        (folders("owl ", "a cat"), ["a cat", "owl"], [1, 0], ["blanks"]),
        (listed(2, 0), ["cat", "dog", "owl"], [2, 0], ["as class numbers", "'2' is 'owl'", "none of 'dog'"]),
        (listed(2, 0), ["0", "1", "2"], [2, 0], ["none of '1'"]),
        (listed(10, 2), UNPADDED, [2, 4], ["by name", "'10' is class 2"]),
        (listed(2, 1), ["1", "2"], [1, 0], []),
        (folders("0", "10", "none"), ["00", "10", "none"], [0, 1, 2], ["by value"]),
        (folders("cat", r"\xb9\xb7"), ["狗", "cat"], [1, 0], ["GBK", "'狗'"]),
        (folders("狗"), [r"\xb9\xb7", "cat"], [0], ["GBK"]),
    ],
)
def test_classes_are_matched(images, known, labels, mentioned):
    matched = match(images, *known)
    assert matched.labels.tolist() == labels
    assert all(part in matched.note for part in mentioned), matched.note
    assert bool(matched.note) == bool(mentioned)


@pytest.mark.parametrize(
    ("images", "known", "mentioned"),
    [
        (folders("b", "zebra"), ["a", "b"], ["'zebra'", "expected only 'a', 'b'", "REMEDY"]),
        (folders(*"abcdefgh"), ["x"], ["'a', 'b', 'c', 'd', 'e' and 3 more"]),
        (folders("Cat"), ["cat", "dog"], ["'Cat' resembles 'cat'"]),
        (folders("7", "07"), TWELVE, ["'7'"]),  # two folders of one value
        (folders("12"), TWELVE, ["'12'"]),
        (folders("crane"), ["crane", "owl", "crane"], ["several classes called 'crane'", "REMEDY"]),
        (folders("0", "1"), ["cat", "dog"], ["'0', '1'"]),  # folders have names, unlike the labels of a list
        (listed(1, 2, 3), ["cat", "dog", "owl"], ["1 to 3", "start at 1", "0 to 2", "subtract 1"]),
        (listed(1, 2, 3), ["0", "1", "2"], ["1 to 3", "start at 1", "0 to 2", "subtract 1"]),
        (listed(0, 3), ["cat", "dog"], ["labels up to 3", "0 to 1", "REMEDY"]),
        (listed(0, 1, 2), ["1", "2", "3"], ["'0'", "expected only '1', '2', '3'"]),
        (listed(0, 1), ["none", "0"], ["'1'"]),  # label 0 is both the name '0' and class number 0
    ],
)
def test_classes_without_a_match_are_refused(images, known, mentioned):
    with pytest.raises(DataError) as refusal:
        match(images, *known)
    assert all(part in str(refusal.value) for part in mentioned), str(refusal.value)


def test_imagenet_has_synsets_and_words():
    synsets = [f"n{number:08d}" for number in range(1000)]
    words = ["tench, Tinca tinca", *map(str, range(998)), "toilet tissue"]
    found = match(folders(*synsets), *words)
    assert found.labels.tolist() == list(range(1000))
    assert "in the order of ImageNet-1k" in found.note
    for names, known in ((synsets[:-1], words), (synsets, words[::-1]), (["a", *synsets[1:]], words)):
        with pytest.raises(DataError):
            match(folders(*names), *known)


def test_a_class_without_images_needs_no_match():
    images = Images(("a", "spare", "b"), np.array([2, 0]))
    assert match(images, "a", "b").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("images", "mentioned"),
    [
        (folders("a", "b"), []),
        (folders("a"), ["one class only, 'a'", "100 %"]),
        (listed(1, 1), ["one class only, '1'", "no label 0, only 1;"]),
        (listed(1, 2), ["no label 0, only 1 to 2;", "subtract 1"]),
        (folders("1", "2"), []),
        (folders("Cat", "cat", "owl"), ["'Cat', 'cat'"]),
        (folders("cat", "cat "), ["'cat', 'cat '"]),
        (folders("cat", r"\xb9\xb7"), [r"\xb9\xb7", "'狗' in GBK", "convmv"]),
    ],
)
def test_warnings_of_training_images(images, mentioned):
    warnings = list(class_warnings(images))
    assert all(part in " ".join(warnings) for part in mentioned), warnings
    assert bool(warnings) == bool(mentioned)
    assert set(label_warnings(images)) <= set(warnings)


def test_numbers_sorted_as_text():
    assert sorted_as_text(UNPADDED) == "10"
    assert [sorted_as_text(names) for names in (TWELVE, ["1", "2"], ["10", "2", "a"], [])] == [None] * 4


def test_the_same_classes_in_another_order():
    assert ClassOrder(["b", "a"]).find_in(["a", "b"]) == [1, 0]
    assert ClassOrder(["a"]).find_in(["a", "b"]) is None
    assert ClassOrder(["a", "c"]).find_in(["a", "b"]) is None
    assert ClassOrder(["0", "1"], numbered=True).find_in(["cat", "dog"]) == [0, 1]
    assert ClassOrder(["0", "1"]).find_in(["cat", "dog"]) is None


def test_numbers_that_have_got_names_match_numbers():
    """A checkpoint may be older than the classes.txt that names the numbers of its list file."""
    order = ClassOrder(["cat", "dog"], numbers_are_named=True)
    assert order.find_in(["0", "1"]) == [0, 1]
    assert order.find_in(["dog", "cat"]) == [1, 0]
    assert order.find_in(["1", "0"]) is order.find_in(["0", "2"]) is None
    assert ClassOrder(["cat", "dog"]).find_in(["0", "1"]) is None
    images = Images(("cat", "dog", "emu"), np.array([2, 0]), numbers_are_named=True)
    found = match_images(images, Reference(["0", "1", "2"], "FILE", "REMEDY"))
    assert found.labels.tolist() == [2, 0]
    assert "as class numbers" in found.note
    with pytest.raises(DataError, match="FILE"):
        match_images(images, Reference(["0", "1"], "FILE", "REMEDY"))


def outputs(order: ClassOrder, count: int) -> list[int]:
    return order.outputs_of(paddle.arange(count)).tolist()


def test_a_resumed_run_keeps_the_outputs_of_its_checkpoint(log):
    order = ClassOrder(UNPADDED)
    assert outputs(order, 3) == [0, 1, 2]
    order.restore(TWELVE, "FILE", "REMEDY")
    order.restore(TWELVE, "FILE", "REMEDY")  # a rollback
    assert order.names == tuple(TWELVE)
    assert outputs(order, 5) == [0, 1, 10, 11, 2]
    assert len(log.records) == 1
    by_label = ClassOrder(["0", "1"], numbered=True)
    by_label.restore(["cat", "dog"], "FILE", "REMEDY")
    assert (outputs(by_label, 2), by_label.names) == ([0, 1], ("cat", "dog"))


def test_checkpoints_without_names_and_runs_without_names(log):
    order, unnamed = ClassOrder(["a", "b"]), ClassOrder()
    order.restore(None, "FILE", "REMEDY")
    assert (order.names, outputs(order, 2)) == (("a", "b"), [0, 1])
    assert "FILE stores no class names" in log.text
    unnamed.restore(["a", "b"], "FILE", "REMEDY")
    assert (unnamed.names, outputs(unnamed, 2)) == (("a", "b"), [0, 1])


@pytest.mark.parametrize(
    ("stored", "mentioned"),
    [
        (["a", "c"], ["'b' in the data only", "'c' in the checkpoint only"]),
        (["a", "b", "c"], ["'c' in the checkpoint only"]),
        (["a"], ["'b' in the data only"]),
        (["a", "B"], ["'b' resembles 'B'"]),
    ],
)
def test_a_run_does_not_resume_with_other_classes(stored, mentioned):
    order = ClassOrder(["a", "b"])
    with pytest.raises(CheckpointError) as refusal:
        order.restore(stored, "FILE", "REMEDY")
    assert all(part in str(refusal.value) for part in ["FILE", "REMEDY", *mentioned]), str(refusal.value)
    assert order.names == ("a", "b")
