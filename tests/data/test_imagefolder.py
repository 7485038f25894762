"""Images are found in every layout; a bad file is skipped or named."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data.decode import open_image
from plsc_mae.data.imagefolder import ImageDataset, balanced_subset, find_images
from plsc_mae.data.listing import ImageList, PathTable
from plsc_mae.data.seeding import SampleKey, sample_rng, stand_in_offsets
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import RandomCropFlip
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def relative(images) -> list[str]:
    return [images.paths[index] for index in range(len(images))]


def test_split_with_classes(tmp_path):
    touch(tmp_path / "train", "dog/b.PNG", "dog/a.jpg", "cat/sub/z.webp", "cat/y.jpeg", "cat/notes.txt", "Zebra/1.bmp")
    touch(tmp_path / "val", "cat/other.jpg")
    images = find_images(tmp_path, "train")
    assert images.classes == ("Zebra", "cat", "dog")
    assert relative(images) == ["Zebra/1.bmp", "cat/y.jpeg", "cat/sub/z.webp", "dog/a.jpg", "dog/b.PNG"]
    assert images.labels.tolist() == [0, 1, 1, 2, 2]
    assert images.labels.dtype == np.int64
    assert images.path(0) == str(tmp_path / "train" / "Zebra" / "1.bmp")


def test_order_is_torchvisions(tmp_path):
    """torchvision sorts the walked folders, so `a/x/..` follows `a/z.jpg`, and 10 precedes 9."""
    touch(tmp_path, "a/z.jpg", "a/x/1.jpg", "a/b.jpg", "a/x/y/0.jpg", "b/10.jpg", "b/9.jpg")
    assert relative(find_images(tmp_path, "train")) == [
        *("a/b.jpg", "a/z.jpg", "a/x/1.jpg", "a/x/y/0.jpg"),
        *("b/10.jpg", "b/9.jpg"),
    ]


@pytest.mark.parametrize("names", [("images", "labels"), ("JPEGImages", "SegmentationClass"), ("img", "masks")])
def test_a_folder_of_annotations_is_no_class(tmp_path, names):
    touch(tmp_path / "train", *(f"{name}/1.png" for name in names))
    with pytest.raises(DataError, match=rf"(?s){names[0]}.*{names[1]}.*--data_path .*{names[0]}"):
        find_images(tmp_path, "train")
    touch(tmp_path / "train", "cat/1.png")
    assert len(find_images(tmp_path, "train").classes) == 3


def test_names_of_a_list_file_are_no_folders(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "train.txt").write_text("1.png 0\n2.png 1\n")
    (tmp_path / "classes.txt").write_text("photos\ntarget\n")
    assert find_images(tmp_path / "train.txt", "train").classes == ("photos", "target")


def test_classes_without_split_folder(tmp_path):
    touch(tmp_path, "n01/a.jpg", "n02/b.jpg", ".cache/c.jpg")
    images = find_images(str(tmp_path), "train")
    assert images.classes == ("n01", "n02")
    assert relative(images) == ["n01/a.jpg", "n02/b.jpg"]


@pytest.mark.parametrize("below", ["", "train"])
def test_flat_folder_has_no_labels(tmp_path, below):
    touch(tmp_path / below, "b.jpg", "a.png", "notes.txt", ".hidden/c.txt")
    images = find_images(tmp_path, "train")
    assert relative(images) == ["a.png", "b.jpg"]
    assert images.labels.tolist() == [-1, -1]
    assert images.classes == ()


def test_list_file_with_labels(tmp_path):
    touch(tmp_path, "pics/one two.jpg", "pics/b.jpg")
    (tmp_path / "train.txt").write_text("pics/one two.jpg 2\n\npics/b.jpg\t0\r\n")
    images = find_images(tmp_path / "train.txt", "train")
    assert relative(images) == ["pics/one two.jpg", "pics/b.jpg"]
    assert images.labels.tolist() == [2, 0]
    assert images.classes == ("0", "1", "2")
    assert images.path(1) == str(tmp_path / "pics" / "b.jpg")


def test_list_file_without_labels_and_with_absolute_paths(tmp_path):
    touch(tmp_path / "elsewhere", "a 1.jpg")
    (tmp_path / "list").write_text(f"\ufeff{tmp_path}/elsewhere/a 1.jpg\n", encoding="utf-8")
    images = find_images(tmp_path / "list", "train")
    assert images.labels.tolist() == [-1]
    assert images.path(0) == f"{tmp_path}/elsewhere/a 1.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no image"),
        (" \n\n", "names no image"),
        ("a.jpg 0\nb.jpg\n", "line 2: .*got 'b.jpg'"),
        ("a.jpg\nb.jpg 1\n", "line 2: .*got 'b.jpg 1'"),
        ("a.jpg 1699999999\n", "line 1: .*labels"),
        ("missing.jpg 0\n", "names missing.jpg, which is not in"),
    ],
)
def test_malformed_list_files(tmp_path, text, message):
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "list.txt", "train")


def test_missing_and_empty_folders_name_the_layouts(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; expected .*/train/<class>/\*\.jpg"):
        find_images(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no images in .*; expected .*/val/<class>/\*\.jpg"):
        find_images(tmp_path, "val")
    touch(tmp_path, "cat/notes.txt")
    with pytest.raises(DataError, match="no images in"):
        find_images(tmp_path, "val")


def test_empty_class_is_named(tmp_path):
    touch(tmp_path, "cat/a.jpg", "dog/notes.txt")
    with pytest.raises(DataError, match=f"{tmp_path}/dog .*jpg"):
        find_images(tmp_path, "train")


def test_another_split_is_not_taken_for_a_class(tmp_path):
    touch(tmp_path, "train/cat/a.jpg")
    with pytest.raises(DataError, match=f"{tmp_path} .*'val', only train"):
        find_images(tmp_path, "val")


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    """`os.walk` alone skips unreadable folders, and a class would shrink unnoticed."""
    scandir = os.scandir

    def refuse_sub(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    touch(tmp_path, "cat/a.jpg", "cat/sub/b.jpg")
    monkeypatch.setattr(os, "scandir", refuse_sub)
    with pytest.raises(DataError, match=f"{tmp_path}/cat/sub: Permission denied"):
        find_images(tmp_path, "train")


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_parent_folder_is_named_and_not_followed_forever(tmp_path, target):
    touch(tmp_path, "train/cat/a.jpg", "train/cat/sub/b.jpg")
    (tmp_path / "train" / "cat" / "sub" / "up").symlink_to(target)
    with pytest.raises(DataError, match=r"sub/up(/cat)? is a link"):
        find_images(tmp_path, "train")


def test_two_links_to_one_folder_are_no_loop(tmp_path):
    touch(tmp_path, "other/a.jpg", "train/cat/b.jpg")
    for name in ("one", "two"):
        (tmp_path / "train" / "cat" / name).symlink_to(tmp_path / "other")
    images = find_images(tmp_path, "train")
    assert [images.paths[i] for i in range(3)] == ["cat/b.jpg", "cat/one/a.jpg", "cat/two/a.jpg"]


def test_listing_opens_nothing(tmp_path):
    """Pipes, devices, broken links and links to themselves are listed by their names and not opened."""
    touch(tmp_path, "train/cat/a.jpg", "train/cat/folder.jpg/b.jpg")
    cat = tmp_path / "train" / "cat"
    os.mkfifo(cat / "fifo.jpg")
    for name, target in {"loop": "loop.jpg", "nowhere": "none", "zero": "/dev/zero"}.items():
        (cat / f"{name}.jpg").symlink_to(target)
    images = find_images(tmp_path, "train")
    names = [images.paths[i] for i in range(len(images))]
    assert names == [f"cat/{name}.jpg" for name in ("a", "fifo", "loop", "nowhere", "zero")] + ["cat/folder.jpg/b.jpg"]


def labeled(*labels: int) -> ImageList:
    """Return a list of images that are named by their index."""
    paths = PathTable(str(i) for i in range(len(labels)))
    return ImageList(paths, np.array(labels, np.int64), ("a", "b", "c"), "root")


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        (9, "0 1 2 3 4 5 6 7 8"),  # all, in their own order
        (8, "3 6 1 0 5"),  # two of each: 3 6 are all of class 0, 1 of class 1; of 0 2 4 5 7 8 the first and the fourth
        (3, "3 1 0"),
    ],
)
def test_few_images_are_chosen_evenly(limit, chosen):
    images = balanced_subset(labeled(2, 1, 2, 0, 2, 2, 0, 2, 2), limit)
    assert " ".join(images.paths[i] for i in range(len(images))) == chosen
    assert (images.classes, images.root) == (("a", "b", "c"), "root")
    of_all = [2, 1, 2, 0, 2, 2, 0, 2, 2]
    assert [of_all[int(name)] for name in chosen.split()] == images.labels.tolist()


def test_more_classes_than_chosen_images():
    images = balanced_subset(labeled(0, 1, 2, 0, 1, 2), 2)
    assert images.labels.tolist() == [0, 0]  # the first and the fourth


def test_a_class_without_images_gives_none():
    images = balanced_subset(labeled(0, 2, 2, 2), 3)
    assert images.labels.tolist() == [0, 2]


def test_paths_are_packed():
    names = ["a.jpg", "", "snö/ü.jpg", os.fsdecode(b"latin\xe9.jpg")]
    table = PathTable(names)
    assert list(table) == names
    with pytest.raises(IndexError):
        table[4]
    assert len(PathTable([])) == 0


def dataset(folder: Path, **options) -> ImageDataset:
    return ImageDataset(find_images(folder, "train"), RandomCropFlip((16, 16)), seed=1, **options)


@pytest.mark.parametrize("backend", ["pil", "opencv"])
def test_samples_depend_on_their_key_alone(image_folder, backend):
    first, second = dataset(image_folder, backend=backend), dataset(image_folder, backend=backend)
    second[SampleKey(0, 3)]
    a, b = first[SampleKey(2, 13)], second[SampleKey(2, 13)]
    assert a.keys() == {"image", INDEX, "label", "skipped"}
    np.testing.assert_array_equal(a["image"], b["image"])
    assert (a[INDEX], a["label"], a["skipped"]) == (13, 1, 0)
    assert a["label"].dtype == a[INDEX].dtype == np.int64
    assert (a["image"] != first[SampleKey(3, 13)]["image"]).any()


def test_bad_image_is_named(image_folder):
    bad = image_folder / "train" / "cat" / "02.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{bad}: .*--bad_image skip") as caught:
        dataset(image_folder)[SampleKey(0, 2)]
    assert "\n" not in str(caught.value)


def make_bad(image_folder: Path, *names: str) -> None:
    for name in names:
        (image_folder / "train" / f"{name}.jpg").write_bytes(b"no image")


def test_a_bad_image_is_replaced_logged_and_counted(image_folder, caplog):
    """The stand-in and its random numbers depend on the seed, the epoch and the index of the bad file alone."""
    good = dataset(image_folder)
    make_bad(image_folder, "cat/02")
    with caplog.at_level(logging.WARNING):
        sample = dataset(image_folder, bad_image="skip")[SampleKey(0, 2)]
    index = (2 + stand_in_offsets(1, 0, 22, 100)[0]) % 22
    assert (sample[INDEX], sample["label"], sample["skipped"]) == (index, good.images.labels[index], 1)
    assert sample["skipped"].dtype == np.int64
    expected = good.transform(open_image(good.images.path(index)), sample_rng(1, 0, 2))["image"]
    np.testing.assert_array_equal(sample["image"], expected)  # the draws are those of the key
    (record,) = caplog.records
    assert str(image_folder / "train" / "cat" / "02.jpg") in record.message
    other = dataset(image_folder, bad_image="skip")
    other[SampleKey(0, 7)]
    np.testing.assert_array_equal(sample["image"], other[SampleKey(0, 2)]["image"])


def test_a_stand_in_that_is_bad_is_replaced_too(image_folder):
    first, second = ((2 + offset) % 22 for offset in stand_in_offsets(1, 0, 22, 2))
    images = dataset(image_folder, bad_image="skip")
    for index in (2, first):
        Path(images.images.path(index)).write_bytes(b"")
    sample = images[SampleKey(0, 2)]
    assert (sample[INDEX], sample["skipped"]) == (second, 1)


@pytest.mark.parametrize(("bad", "most"), [(17, 1), (40, 2), (60, 3)])
def test_stand_ins_of_consecutive_bad_files_are_spread_evenly(tmp_path, monkeypatch, bad, most):
    """Of 100 files, `bad` consecutive ones are damaged; no good file replaces more than `most` of them."""
    touch(tmp_path / "train", *(f"{index:03d}.jpg" for index in range(100)))
    images = dataset(tmp_path, bad_image="skip")

    def read(index: int) -> None:
        if 20 <= index < 20 + bad:
            raise DataError(f"file {index} is damaged")

    monkeypatch.setattr(images, "_open", read)
    monkeypatch.setattr(images, "transform", lambda _image, _rng: {})
    chosen = []
    for epoch in range(5):
        stand_ins = [int(images[SampleKey(epoch, index)][INDEX]) for index in range(20, 20 + bad)]
        assert max(map(stand_ins.count, stand_ins)) <= most
        chosen.append(stand_ins)
    assert len({tuple(stand_ins) for stand_ins in chosen}) == 5


def test_every_bad_file_is_named_once_and_no_more_than_twenty(tmp_path, caplog):
    """In all epochs, and in data sets of the same list, as the evaluations of a run use it."""
    Image.new("RGB", (20, 20)).save(make_folder(tmp_path / "train") / "good.png")
    touch(tmp_path / "train", *(f"{index:02d}.jpg" for index in range(25)))
    images = find_images(tmp_path, "train")
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            images_of_epoch = ImageDataset(images, RandomCropFlip((16, 16)), seed=1, bad_image="skip")
            assert all(images_of_epoch[SampleKey(epoch, index)][INDEX] == 25 for index in range(26))
    assert len(caplog.records) == 20
    assert len({record.message.partition(":")[0] for record in caplog.records}) == 20
    assert "further" in caplog.records[-1].message
    assert images.unreadable.count == 25


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_nothing_decodable_is_an_error_even_when_skipping(image_folder):
    for path in image_folder.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"any of 22 files .*cat/05\.jpg"):
        dataset(image_folder, bad_image="skip")[SampleKey(0, 5)]


def test_skipping_gives_up_after_a_hundred_files(tmp_path):
    touch(tmp_path / "train", *(f"{index:03d}.jpg" for index in range(150)))
    with pytest.raises(DataError, match="any of 101 files"):
        dataset(tmp_path, bad_image="skip")[SampleKey(0, 0)]


def test_bugs_in_a_transform_are_not_bad_images(image_folder):
    def broken(image, rng):
        raise KeyError("a bug")

    images = ImageDataset(find_images(image_folder, "train"), broken, seed=0, bad_image="skip")
    with pytest.raises(KeyError):
        images[SampleKey(0, 0)]
