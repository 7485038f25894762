"""Folders with two readings, hidden and foreign files, and lists in any encoding."""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from plsc_mae.data.imagefolder import find_images, find_validation
from plsc_mae.data.listing import ImageList, PathTable, list_images
from plsc_mae.errors import DataError
from plsc_mae.names import restore_name

pytestmark = [pytest.mark.compat, pytest.mark.once]

GBK = os.fsdecode("狗".encode("gbk"))


def touch(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def relative(images: ImageList) -> list[str]:
    return [images.paths[index] for index in range(len(images))]


# ------------------------------------------------------------------------------------------------ hidden files

HIDDEN = (
    *("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg", "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg"),
    *(".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png", "#recycle/0.png", "@Recycle/0.png"),
    *("lost+found/0.png", ".Trash-1000/files/0.png", "System Volume Information/0.png", "$RECYCLE.BIN/0.png"),
)


@pytest.mark.parametrize("below", ["", "train", "train/cat", "train/cat/deep"])
def test_hidden_and_system_files_are_ignored_at_every_depth(tmp_path, below, caplog):
    touch(tmp_path, "train/cat/0.png", "train/cat/deep/1.png", "train/dog/0.png", "val/cat/0.png", "val/dog/0.png")
    touch(tmp_path / below, *HIDDEN)
    with caplog.at_level(logging.INFO, logger="plsc_mae"):
        images = find_images(tmp_path, "train")
    assert images.classes == ("cat", "dog")
    assert relative(images) == ["cat/0.png", "cat/deep/1.png", "dog/0.png"]
    assert images.left_out.hidden.number == len(HIDDEN)
    (record,) = caplog.records
    assert f"ignored {len(HIDDEN)} hidden" in record.message
    assert record.levelno == logging.INFO


@pytest.mark.parametrize("labeled", [True, False])
def test_hidden_files_of_flat_folders_are_ignored(tmp_path, labeled):
    images = list_images(touch(tmp_path, "1.png", "2.jpg", *HIDDEN), "val", labeled=labeled)
    assert relative(images) == ["1.png", "2.jpg"]
    assert images.left_out.hidden.number == len(HIDDEN)


def test_a_hidden_folder_can_be_the_data_set(tmp_path):
    images = find_images(touch(tmp_path / ".cache", "a/0.png"), "train")
    assert relative(images) == ["a/0.png"]


def test_nothing_is_logged_without_a_reason(tmp_path, caplog):
    touch(tmp_path, "train/a/0.png", "train/a/0.txt", "train/a/0.xml", "val/a/0.png", "docs/guide.pdf", "README")
    with caplog.at_level(logging.INFO, logger="plsc_mae"):
        find_images(tmp_path, "train")
    assert caplog.records == []


# ------------------------------------------------------------------------------------------------ two readings


@pytest.mark.parametrize("split", ["train", "val", "test", "validation"])
@pytest.mark.parametrize("wanted", ["train", "val"])
def test_a_class_named_like_a_split_has_two_readings(tmp_path, split, wanted):
    touch(tmp_path / "data", *(f"{name}/{i}.png" for name in ("bus", "car", split) for i in range(2)))
    with pytest.raises(DataError) as error:
        list_images(tmp_path / "data", wanted, flag="--eval_data_path")
    text = str(error.value)
    assert f"'{split}'" in text
    assert "bus, car" in text
    assert f"ln -s {tmp_path}/data NEW/{wanted}` and pass --eval_data_path NEW" in text
    if split == wanted:
        assert f"pass --eval_data_path {tmp_path}/data/{split};" in text
        split_alone = list_images(tmp_path / "data" / split, wanted)
        assert relative(split_alone) == ["0.png", "1.png"]
    (tmp_path / "NEW").mkdir()
    (tmp_path / "NEW" / wanted).symlink_to(tmp_path / "data")
    assert list_images(tmp_path / "NEW", wanted).classes == tuple(sorted(("bus", "car", split)))


@pytest.mark.parametrize(
    "names",
    [
        ("train/a/0.png", "train/b/0.png", "val/a/0.png", "test/0.png", "docs/figure.png"),
        ("train/a/0.png", "train/b/0.png", "docs/figure.png"),  # class folders beside loose images
        ("train/0.png", "val/0.png", "masks/0.png"),
        ("train/0.png", "docs/guide.txt", "empty/readme"),
        ("train/0.png", "__MACOSX/0.png"),
    ],
)
def test_splits_beside_other_folders_have_one_reading(tmp_path, names):
    touch(tmp_path, *names)
    assert Path(list_images(tmp_path, "train").root) == tmp_path / "train"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("Train", "Val"), "Train, Val"),
        (("train2017", "val2017"), "train2017, val2017"),
        (("training_set", "test_set"), "test_set, training_set"),
        (("test", "val", "cat"), "cat, test, val"),
        (("testing",), "testing"),
        (("Train", "Val", "masks"), "Train, Val, masks"),
        (("trainval", "test"), "test, trainval"),
    ],
)
def test_other_splits_are_not_taken_for_classes(tmp_path, names, found):
    touch(tmp_path, *(f"{name}/0.png" for name in names))
    with pytest.raises(DataError, match=f"has no folder 'train', only {found}; .*--data_path {tmp_path}/"):
        list_images(tmp_path, "train")


@pytest.mark.parametrize(("wanted", "example"), [("train", "training"), ("val", "VAL_set"), ("test", "testing")])
def test_the_proposed_folder_is_that_of_the_split(tmp_path, wanted, example):
    touch(tmp_path, "training/0.png", "testing/0.png", "VAL_set/0.png")
    with pytest.raises(DataError, match=f"for example --data_path {tmp_path}/{example};"):
        list_images(tmp_path, wanted)


@pytest.mark.parametrize(
    "names",
    [
        ("data/train/a/0.png", "data/val/a/0.png"),  # an archive with its outer folder
        ("images/train/0.png", "images/val/0.png", "labels/train/0.png"),
        ("cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"),
        ("Data/Train/0.png", "Data/Val/0.png"),
    ],
)
@pytest.mark.parametrize("wanted", ["train", "val"])
def test_folders_that_contain_splits_have_two_readings(tmp_path, names, wanted):
    touch(tmp_path / "data", *names)
    first = names[0].split("/")[0]
    with pytest.raises(DataError, match=f"'{first}' has .*[Tt]rain.*pass --data_path {tmp_path}/data/{first};"):
        list_images(tmp_path / "data", wanted)
    (tmp_path / "NEW").mkdir()
    (tmp_path / "NEW" / wanted).symlink_to(tmp_path / "data")
    assert len(list_images(tmp_path / "NEW", wanted)) == len(names)
    assert len(list_images(tmp_path / "data", wanted, labeled=False)) == len(names)


def test_splits_are_found_below_several_outer_folders(tmp_path):
    touch(tmp_path, "a/b/c/train/0.png", "a/b/c/val/0.png", "a/readme.txt")
    with pytest.raises(DataError, match=f"pass --data_path {tmp_path}/a/b/c;"):
        list_images(tmp_path, "train")


def test_a_subfolder_named_like_one_split_is_part_of_its_class(tmp_path):
    touch(tmp_path, "train/car/train/0.png", "train/bus/train/0.png", "train/bus/val/notes.txt")
    assert relative(list_images(tmp_path, "train")) == ["bus/train/0.png", "car/train/0.png"]


def test_splits_below_the_folder_of_the_split(tmp_path):
    touch(tmp_path, "train/train/a/0.png", "train/val/a/0.png")
    with pytest.raises(DataError, match=f"pass --data_path {tmp_path}/train"):
        list_images(tmp_path, "train")


def test_messages_name_the_option(tmp_path):
    train = find_images(touch(tmp_path, "train/a/0.png"), "train")
    with pytest.raises(DataError, match=f"--eval_data_path {tmp_path}/none does not exist"):
        find_validation(train, str(tmp_path), str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"--img_path .* is a pipe, socket or device"):
        list_images("/dev/null", "val", flag="--img_path")


# ------------------------------------------------------------------------------------------- left out without classes


def test_loose_images_beside_class_folders_are_counted(tmp_path, caplog):
    images = find_images(touch(tmp_path, "a/0.png", "b/0.png", "1.png", "2.jpg", "notes.txt"), "train")
    assert relative(images) == ["a/0.png", "b/0.png"]
    assert (images.left_out.loose.number, images.left_out.loose.example) == (2, str(tmp_path / "1.png"))
    (record,) = caplog.records
    assert "2 images beside the class folders" in record.message
    assert "list file" in record.message
    everything = list_images(tmp_path, "val", labeled=False)
    assert relative(everything) == ["1.png", "2.jpg", "a/0.png", "b/0.png"]
    assert everything.labels.tolist() == [-1] * 4


def test_images_of_other_formats_are_counted(tmp_path, caplog):
    """By their suffix, or by the first bytes of the first file of each suffix."""
    touch(tmp_path, "a/0.png", "a/1.GIF", "a/2.gif", "a/3.heic", "a/4.npy", "a/5.txt", "a/6.json", "a/LICENSE.rst")
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "JPEG")
    touch(tmp_path, "a/IMG_1", "a/7.jpg_large", "a/8.jpg~", content=stream.getvalue())
    images = find_images(tmp_path, "train")
    assert relative(images) == ["a/0.png"]
    (record,) = caplog.records
    assert "left out 7 files" in record.message
    for part in ("2 .gif", "1 .heic", "1 .npy", "1 .jpg~", f"{tmp_path}/a/1.GIF", "convert"):
        assert part in record.message


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    touch(tmp_path / "gif", "a/0.gif", "b/0.gif")
    with pytest.raises(DataError, match=r"no images in .*2 \.gif.*convert them"):
        list_images(tmp_path / "gif", "train")
    touch(tmp_path / "some", "a/0.png", "b/0.heic")
    with pytest.raises(DataError, match=r"class folder .*/b contains no image .*1 \.heic"):
        list_images(tmp_path / "some", "train")
    touch(tmp_path / "shards", "0.tar.gz", "1.tar.gz", content=gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"2 other files; .*0\.tar\.gz is a gzip archive: unpack it"):
        list_images(tmp_path / "shards", "train")
    touch(tmp_path / "lmdb", "data.mdb", content=bytes(16) + b"\xde\xc0\xef\xbe")
    with pytest.raises(DataError, match=r"data\.mdb is an LMDB database"):
        list_images(tmp_path / "lmdb", "train")


def test_many_suffixes_take_little_memory(tmp_path):
    images = list_images(touch(tmp_path, "a.png", *(f"run.{i}" for i in range(150))), "train")
    assert len(images.left_out.suffixes) == 101
    assert sum(count.number for count in images.left_out.suffixes.values()) == 150


# ------------------------------------------------------------------------------------------------ names and lists


def test_names_that_are_not_utf8(tmp_path):
    touch(tmp_path, f"{GBK}b/照.png", f"{GBK}a/{GBK}.png", "cat/0.png")
    images = list_images(tmp_path, "train")
    assert images.classes == ("cat", r"\xb9\xb7a", r"\xb9\xb7b")
    assert images.labels.tolist() == [0, 1, 2]
    assert [images.name(i) for i in range(3)] == ["cat/0.png", r"\xb9\xb7a/\xb9\xb7.png", r"\xb9\xb7b/照.png"]
    assert restore_name(images.name(1)) == images.paths[1]
    assert Path(images.path(1)).read_bytes() == b"x"


def test_a_file_beside_a_list_names_its_classes(tmp_path):
    """It has no effect on lists without labels, on class folders, and where labels are not asked for."""
    touch(tmp_path, "a.png", "folders/cat/0.png", "classes.txt", "folders/classes.txt")
    for folder in (tmp_path, tmp_path / "folders"):
        (folder / "classes.txt").write_text("pug\nchow\nhusky\n")
    (tmp_path / "list.txt").write_text("a.png 1\na.png 0\n")
    images = list_images(tmp_path / "list.txt", "train")
    assert (images.classes, images.labels.tolist(), images.numbered) == (("pug", "chow", "husky"), [1, 0], False)
    assert str(tmp_path / "classes.txt") in images.label_note
    assert list_images(tmp_path / "list.txt", "train", labeled=False).numbered
    assert list_images(tmp_path / "folders", "train").classes == ("cat",)
    (tmp_path / "list.txt").write_text("a.png\n")
    assert list_images(tmp_path / "list.txt", "train").classes == ()
    (tmp_path / "classes.txt").write_text("a.png 0\n")
    assert list_images(tmp_path / "classes.txt", "train").classes == ("0",)


@pytest.mark.parametrize("encoding", ["gbk", "utf-8", "utf-8-sig", "latin-1", "shift-jis"])
def test_a_list_in_any_encoding_names_files_of_that_encoding(tmp_path, encoding):
    text = "ñandú 1.png" if encoding == "latin-1" else "犬 猫.png"
    name = os.fsdecode(text.encode(encoding.removesuffix("-sig")))
    touch(tmp_path, f"pics/{name}")
    (tmp_path / "list.txt").write_bytes(f"pics/{text} 3\r\npics/{text} 0\r\n".encode(encoding))
    images = list_images(tmp_path / "list.txt", "train")
    assert relative(images) == [f"pics/{name}"] * 2
    assert images.labels.tolist() == [3, 0]
    assert Path(images.path(1)).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.jpg 0\n" + b"x" * 10_000 + b"\n", "line 2 is longer than 8192 characters"),
        (b"a.jpg 0\n" * 1000 + b"b\0.jpg 0\n", "line 1001 has a zero byte"),
        ("a.jpg 0\n".encode("utf-16"), "is UTF-16 text; .*: save it as UTF-8"),
        (b'{"images": [', "is a JSON file"),
        (b"\x7fELF\2\1\1\0", r"is a program \(ELF\)"),
    ],
)
def test_other_files_are_no_lists(tmp_path, content, message):
    (touch(tmp_path, "a.jpg") / "list").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list_images(tmp_path / "list", "train")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ('"a.jpg" 0', "without quotation marks"),
        ("'a.jpg'", "without quotation marks"),
        ("a.jpg,0", "with a blank in between"),
        ("a.jpg;cat", "with a blank in between"),
        ("path label", "no line of headings"),
        ("a.jpg cat", "labels as numbers from 0"),
        ("a.jpg 0 1", "at most one label per line"),
        (r"sub\a.jpg 0", "separate folders by /"),
        ("https://example.org/a.jpg 0", "download the images"),
        ("elsewhere/a.jpg 0", "relative to the list file"),
    ],
)
def test_the_remedy_fits_the_entry_of_a_list(tmp_path, line, remedy):
    (touch(tmp_path, "a.jpg") / "list").write_text(f"{line}\n")
    with pytest.raises(DataError, match=f"list names .*; .*{remedy}"):
        list_images(tmp_path / "list", "train")


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.csv", "图像,类别\na.jpg,猫\n", "`plsc-mae split FOLDER/a.csv DST` makes"),
        ("a.csv", "图像,类别,医院\n0.jpg,猫,甲\n", "`plsc-mae split FOLDER/a.csv DST --image_path DIR --label_column"),
        (
            "a.txt",
            "image;class;ward\na.jpg;cat;3\n",
            "rename it to FOLDER/a.csv, and `plsc-mae split FOLDER/a.csv DST --",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_a_csv_file_is_not_taken_for_a_list(tmp_path, name, content, remedy, encoding):
    """The options that the message names are those that this file needs."""
    (touch(tmp_path, "a.jpg") / name).write_text(content, encoding=encoding)
    told = f"{name} is a CSV file, not a list of images; {remedy.replace('FOLDER', str(tmp_path))}"
    with pytest.raises(DataError, match=re.escape(told)):
        list_images(tmp_path / name, "train")


def test_an_archive_is_named_with_the_remedy(tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(
        DataError, match=r"--data_path .*images\.tar\.gz is a gzip archive; .*unpack it and pass the folder"
    ):
        list_images(tmp_path / "images.tar.gz", "train")


def test_a_list_takes_the_memory_of_its_table(tmp_path):
    """Measured with 20 000 paths of 40 bytes, 800 kB: the peak is below 3 MB."""
    touch(tmp_path, "a.jpg")
    (tmp_path / "list").write_text("a.jpg 0\n" + f"{'folder/' * 5}0.jpg 1\n" * 20_000)
    tracemalloc.start()
    images = list_images(tmp_path / "list", "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(images) == 20_001
    assert peak < 3_000_000


def test_a_table_of_a_generator():
    table = PathTable(str(i) for i in range(1000))
    assert (len(table), table[0], table[999]) == (1000, "0", "999")


def test_paths_of_a_list_outside_its_folder_are_short(tmp_path, monkeypatch):
    touch(tmp_path, "place/tiles/a/0.png", "elsewhere/lists/x.png")
    (tmp_path / "place/sets/first").mkdir(parents=True)
    (tmp_path / "place/sets/link").symlink_to(tmp_path / "elsewhere/lists")
    entries = {
        "sets/first/val.txt": ("../../tiles/a/0.png", "tiles/a/0.png"),
        "sets/val.txt": ("../tiles/a/0.png", "tiles/a/0.png"),
        "val.txt": ("../place/tiles/a/0.png", "../place/tiles/a/0.png"),
        "sets/link/val.txt": ("../../place/tiles/a/0.png", "sets/link/../../place/tiles/a/0.png"),
    }
    monkeypatch.chdir(tmp_path / "place")
    for file, (entry, path) in entries.items():
        Path(file).write_text(f"{entry} 0\n")
        images = list_images(file, "train")
        assert images.path(0) == path
        assert images.name(0) == entry  # the rows of predict.csv are those of the list
        assert Path(path).samefile("tiles/a/0.png")
    images = list_images(tmp_path / "place/sets/val.txt", "train")
    assert images.path(0) == f"{tmp_path}/place/tiles/a/0.png"
