"""Rules of the published evaluation sets, on stand-ins with the same folders: the right outputs, or a refusal."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.analysis.corruption import ALEXNET_ERRORS
from plsc_mae.config import ClassifyConfig
from plsc_mae.config.schema import without_none
from plsc_mae.data.imagenet import synsets
from plsc_mae.errors import DataError
from plsc_mae.loading.class_names import Head
from plsc_mae.loading.eval_sets import RULES, EvaluationPart, Source, find_parts

ALL = synsets()
UNNAMED = Head(1000, (), "unnamed.pth")


def fill(root: Path, *folders: str, count: int = 1) -> Path:
    """Write empty files FOLDER/0.png, ..., which rules never open."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.png").touch()
    return root


def only_part(name: str, path: Path, head: Head = UNNAMED, real_labels: str = "") -> EvaluationPart:
    (part,) = find_parts(name, Source(str(path), "--data_path", head, real_labels))
    return part


def outputs_by_folder(part: EvaluationPart) -> dict[str, int]:
    """The output that counts as right for the images of each folder."""
    images = part.images
    return {images.paths[i].split("/")[0]: int(part.outputs[images.labels[i]]) for i in range(len(images))}


def refusal(name: str, path: Path, head: Head = UNNAMED, real_labels: str = "") -> str:
    with pytest.raises(DataError) as error:
        list(find_parts(name, Source(str(path), "--data_path", head, real_labels)))
    return str(error.value)


def test_every_option_has_a_rule():
    hint = typing.get_type_hints(ClassifyConfig)["eval_set"]
    assert set(RULES) == set(typing.get_args(without_none(hint)))


@pytest.mark.parametrize(("name", "letter"), [("imagenet-a", "a"), ("imagenet-r", "r"), ("imagenet-sketch", "")])
def test_sets_of_folders(name, letter, tmp_path, caplog):
    """Predictions take the classes of the published set, also if folders are missing, which is said."""
    classes = synsets(letter)
    part = only_part(name, fill(tmp_path / "whole", *classes))
    assert outputs_by_folder(part) == {folder: ALL.index(folder) for folder in classes}
    assert part.outputs.tolist() == [ALL.index(folder) for folder in classes]
    assert "classes of this --eval_set" not in caplog.text
    some = only_part(name, fill(tmp_path / "some", *classes[5:8]))
    assert len(some.outputs) == len(classes)
    assert outputs_by_folder(some) == {folder: ALL.index(folder) for folder in classes[5:8]}
    assert f"3 of the {len(classes)} classes" in caplog.text


def test_classifiers_in_any_order_and_with_more_classes(tmp_path):
    folder = fill(tmp_path, *synsets("a")[:4])
    shuffled = ["n99999999", *np.random.default_rng(0).permutation(ALL).tolist(), "n88888888"]
    part = only_part("imagenet-a", folder, Head(1002, tuple(shuffled), "big.pd"))
    assert outputs_by_folder(part) == {name: shuffled.index(name) for name in synsets("a")[:4]}
    words = tuple(f"{name} word" for name in shuffled)
    assert outputs_by_folder(only_part("imagenet-a", folder, Head(1002, words, "w.pd"))) == outputs_by_folder(part)
    in_words = ("tench, Tinca tinca", *(f"class {i}" for i in range(998)), "toilet tissue")
    assert outputs_by_folder(only_part("imagenet-a", folder, Head(1000, in_words, "hf"))) == {
        name: ALL.index(name) for name in synsets("a")[:4]
    }


def test_renamed_folders(tmp_path):
    name = synsets("r")[3]
    assert outputs_by_folder(only_part("imagenet-r", fill(tmp_path / "a", f"{name}-goldfish"))) == {
        f"{name}-goldfish": ALL.index(name)
    }
    assert "'goldfish'" in refusal("imagenet-r", fill(tmp_path / "b", name, "goldfish"))
    other = next(each for each in ALL if each not in synsets("r"))
    assert f"'{other}'" in refusal("imagenet-r", fill(tmp_path / "c", name, other))
    assert "'7'" in refusal("imagenet-sketch", fill(tmp_path / "d", "7"))


def test_classifiers_that_lack_classes(tmp_path):
    folder = fill(tmp_path, *synsets("a")[:2])
    message = refusal("imagenet-a", folder, Head(199, synsets("a")[1:], "small.pd"))
    assert all(part in message for part in ("small.pd", synsets("a")[0], "--eval_set shared"))
    assert "--classes FILE" in refusal("imagenet-a", folder, Head(10, (), "ten.pth"))


def test_folders_of_v2_are_class_numbers(tmp_path):
    """Sorted as text, 0, 1, 10, 100, 2 are the classes of these numbers all the same."""
    part = only_part("imagenet-v2", fill(tmp_path / "v2", "0", "1", "2", "10", "100", "999"))
    assert outputs_by_folder(part) == {"0": 0, "1": 1, "2": 2, "10": 10, "100": 100, "999": 999}
    shuffled = np.random.default_rng(0).permutation(ALL).tolist()
    turned = only_part("imagenet-v2", tmp_path / "v2", Head(1000, tuple(shuffled), "s.pd"))
    assert outputs_by_folder(turned)["10"] == shuffled.index(ALL[10])
    assert "start at 1" in refusal("imagenet-v2", fill(tmp_path / "from1", "1", "2", "1000"))
    assert outputs_by_folder(only_part("imagenet-v2", fill(tmp_path / "ids", ALL[7]))) == {ALL[7]: 7}


def test_list_files_have_class_numbers(tmp_path):
    fill(tmp_path, "any")
    (tmp_path / "list.txt").write_text("any/0.png 999\n")
    part = only_part("imagenet-sketch", tmp_path / "list.txt")
    assert part.outputs[part.images.labels[0]] == 999
    (tmp_path / "list.txt").write_text("any/0.png 0\n")  # tench is not in ImageNet-A
    assert "'0'" in refusal("imagenet-a", tmp_path / "list.txt")


@pytest.fixture
def validation(tmp_path):
    """Four validation images in class folders, and ReaL's labels of five: none, one, two, none, one."""
    root = tmp_path / "val"
    for number, folder in ((1, ALL[0]), (2, ALL[0]), (3, ALL[1]), (5, ALL[2])):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
    (root / "real.json").write_text(json.dumps([[], [7], [1, 900], [], [2]]))
    return root


def test_real_labels_follow_the_file_numbers(validation, tmp_path, caplog):
    caplog.set_level("INFO")
    part = only_part("imagenet-real", validation)
    numbers = [int(part.images.path(i)[-13:-5]) for i in range(len(part.images))]
    assert numbers == [2, 3, 5]
    assert [np.flatnonzero(row).tolist() for row in part.accepted] == [[7], [1, 900], [2]]
    assert part.outputs.tolist() == list(range(1000))
    assert "3 of the 3 images with labels" in caplog.text
    shuffled = np.random.default_rng(0).permutation(ALL).tolist()
    turned = only_part("imagenet-real", validation, Head(1000, tuple(shuffled), "s.pd"))
    assert shuffled[turned.outputs[900]] == ALL[900]
    (validation / "real.json").rename(tmp_path / "moved.json")
    assert len(only_part("imagenet-real", validation, real_labels=str(tmp_path / "moved.json")).images) == 3
    assert "--real_labels" in refusal("imagenet-real", validation)


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        ("{}", "class numbers from 0 to 999"),
        ("[[1], 2]", "class numbers from 0 to 999"),
        ("[[1], [1000]]", "class numbers from 0 to 999"),
        ("[[1], [true]]", "class numbers from 0 to 999"),
        ("[[1]", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[[1], [2]]", "labels of 1 to 2"),
        ("[[], [], [], [], []]", "no label"),
    ],
)
def test_damaged_real_labels(validation, content, mentioned):
    (validation / "real.json").write_text(content)
    assert mentioned in refusal("imagenet-real", validation)


def test_renamed_validation_images(validation):
    (validation / ALL[0] / "first.JPEG").touch()
    assert "first.JPEG" in refusal("imagenet-real", validation)


@pytest.mark.parametrize("group", ["", "all/"])
def test_corruptions(group, tmp_path, caplog):
    for name in ALEXNET_ERRORS:
        for severity in range(1, 6):
            fill(tmp_path / f"{group}{name}/{severity}", ALL[3], ALL[998])
    fill(tmp_path / f"{group}Gaussian-Blur/1", ALL[3])
    message = refusal("imagenet-c", tmp_path)
    assert all(part in message for part in ("Gaussian-Blur", "2, 3, 4, 5"))
    for severity in range(2, 6):
        fill(tmp_path / f"{group}Gaussian-Blur/{severity}", ALL[3])
    parts = list(find_parts("imagenet-c", Source(str(tmp_path), "--data_path", UNNAMED)))
    assert len(parts) == 16 * 5
    assert [part.name for part in parts[:2]] == ["brightness/1", "brightness/2"]
    assert outputs_by_folder(parts[0]) == {ALL[3]: 3, ALL[998]: 998}
    assert "no mCE" not in caplog.text


def test_incomplete_corruptions(tmp_path, caplog):
    for severity in range(1, 6):
        fill(tmp_path / f"fog/{severity}", ALL[3])
    assert len(list(find_parts("imagenet-c", Source(str(tmp_path), "--data_path", UNNAMED)))) == 5
    assert "snow" in caplog.text
    fill(tmp_path / "mist/1", ALL[3])
    assert "'mist'" in refusal("imagenet-c", tmp_path)
    assert "is not a folder" in refusal("imagenet-c", tmp_path / "none")


def test_shared_classes(tmp_path, caplog):
    """A set of other classes than the classifier's: those of both count, and predictions take no others."""
    head = Head(4, ("wolf", "cat", "dog", "ant"), "four.pd")
    part = only_part("shared", fill(tmp_path / "set", "ant", "bee", "cat", "dog", count=2), head)
    assert part.outputs.tolist() == [1, 2, 3]
    assert part.images.classes == ("cat", "dog", "ant")
    assert outputs_by_folder(part) == {"ant": 3, "cat": 1, "dog": 2}
    assert len(part.images) == 6
    assert "3 of the 4 classes" in caplog.text
    assert "2 images of other classes" in caplog.text
    assert "no class in common" in refusal("shared", fill(tmp_path / "other", "bee", "fly"), head)
    synset = synsets("a")[0]
    by_id = only_part("shared", fill(tmp_path / "ids", synset, "n00000001"))
    assert outputs_by_folder(by_id) == {synset: ALL.index(synset)}
