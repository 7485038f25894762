"""Splits, classes, labels, hidden and foreign members, and patterns of archives."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.data.imagefolder import find_images, find_validation, require_classes
from plsc_mae.data.listing import has_split, list_images
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]
CLASSES = {"cat/0.jpg": b"x", "cat/1.jpg": b"x", "dog/0.jpg": b"x"}


def prefixed(prefix: str, names=CLASSES) -> dict[str, bytes]:
    return {prefix + name: b"x" for name in names}


def relative(images) -> list[str]:
    return list(images.paths)


def test_splits_in_subfolders_archives_and_names(tmp_path, tar, monkeypatch):
    tar(tmp_path / "a" / "train" / "0.tar", CLASSES)
    tar(tmp_path / "a" / "val" / "0.tar", {"dog/9.jpg": b"x"})
    tar(tmp_path / "b" / "train-0.tar", CLASSES)
    tar(tmp_path / "b" / "validation-0.tar", {"dog/9.jpg": b"x"})
    tar(tmp_path / "c.tar", prefixed("train/") | {"val/dog/9.jpg": b"x"})
    tar(tmp_path / "d.tar", prefixed("./data/train/") | {"./data/val/dog/9.jpg": b"x"})
    monkeypatch.chdir(tmp_path)
    for path in ("a", "b", "c.tar", "d.tar"):
        assert has_split(path, "train"), path
        assert has_split(path, "val"), path
        train = find_images(path, "train")
        assert [path.rpartition("/")[2] for path in relative(train)] == ["0.jpg", "1.jpg", "0.jpg"]
        val = find_validation(train, path)
        assert val.labels.tolist() == [1]
        assert val.path(0).endswith("dog/9.jpg")
    tar(tmp_path / "e.tar", CLASSES)
    assert not has_split("e.tar", "val")
    with pytest.raises(DataError, match="--eval_data_path"):
        find_validation(find_images("e.tar", "train"), "e.tar")
    with pytest.raises(DataError, match=r"'test'"):
        list_images("b", "test")


def test_outer_folders_of_an_archive_are_no_class(tmp_path, tar):
    images = find_images(tar(tmp_path / "a.tar", prefixed("animals/")), "train")
    assert images.classes == ("cat", "dog")
    single = find_images(tar(tmp_path / "b.tar", {"cat/0.jpg": b"x", "cat/1.jpg": b"x"}), "train")
    assert single.classes == ("cat",)


def test_hidden_and_other_members(tmp_path, tar):
    extra = {
        "__MACOSX/cat/._0.jpg": b"x",
        "cat/._0.jpg": b"x",
        ".DS_Store": b"x",
        "cat/notes.txt": b"x",
        "loose.jpg": b"x",
    }
    images = find_images(tar(tmp_path / "a.tar", CLASSES | extra), "train")
    assert relative(images) == ["a.tar/cat/0.jpg", "a.tar/cat/1.jpg", "a.tar/dog/0.jpg"]
    assert images.left_out.hidden.number == 3
    assert images.left_out.loose.number == 1


def test_members_of_one_name_are_different_images(tmp_path, tar):
    tar(tmp_path / "0.tar", {"cat/0.jpg": b"x"})
    tar(tmp_path / "1.tar", {"cat/0.jpg": b"x", "cat/.." + "/x.jpg": b"x"})
    images = find_images(f"{tmp_path}/*.tar", "train")
    assert relative(images) == ["0.tar/cat/0.jpg", "1.tar/cat/0.jpg"]
    assert images.source == f"{tmp_path}/*.tar"


def test_a_class_without_images_and_an_archive_without_images(tmp_path, tar):
    with pytest.raises(DataError, match=r"a\.tar/dog"):
        find_images(tar(tmp_path / "a.tar", {"cat/0.jpg": b"x", "dog/0.txt": b"x"}), "train")
    with pytest.raises(DataError, match=r"no images in .*b\.tar"):
        find_images(tar(tmp_path / "b.tar", {"a.txt": b"x"}), "train")
    with pytest.raises(DataError, match=r"(?s)test.*trainval"):
        find_images(tar(tmp_path / "c.tar", prefixed("trainval/") | prefixed("test/")), "train")


# ------------------------------------------------------------------------------------------------------ labels


def test_numbers_of_webdataset(tmp_path, tar, caplog):
    names = {
        "b.jpg": b"x",
        "b.cls": b"0\n",
        "a.jpg": b"x",
        "a.seg.png": b"x",
        "a.cls": b"2",
        "c.jpg": b"x",
        "c.cls": b"0",
    }
    images = find_images(tar(tmp_path / "0.tar", names), "train")
    assert relative(images) == ["0.tar/b.jpg", "0.tar/c.jpg", "0.tar/a.jpg"]
    assert images.labels.tolist() == [0, 0, 2]
    assert images.classes == ("0", "1", "2")
    assert images.numbered
    assert images.left_out.suffixes[".png"].number == 1
    (tmp_path / "classes.txt").write_text("pug\nchow\nhusky\n")
    images = find_images(tmp_path / "0.tar", "train")
    assert (images.classes, images.labels.tolist(), images.numbered) == (("pug", "chow", "husky"), [0, 0, 2], False)


def test_names_and_json_of_webdataset(tmp_path, tar):
    images = find_images(
        tar(tmp_path / "0.tar", {"x/1.jpg": b"x", "x/1.cls": b"dog", "x/2.jpg": b"x", "x/2.cls": b"cat"}), "train"
    )
    assert (images.classes, images.labels.tolist(), images.numbered) == (("cat", "dog"), [0, 1], False)
    by_json = {"1.jpg": b"x", "1.json": b'{"label": 1, "w": 3}', "2.jpg": b"x", "2.json": b'{"label": 0}'}
    images = find_images(tar(tmp_path / "1.tar", by_json), "train")
    assert relative(images) == ["1.tar/2.jpg", "1.tar/1.jpg"]
    captions = {"1.jpg": b"x", "1.json": b'{"caption": "a dog"}', "2.jpg": b"x", "2.json": b"[" * 100_000}
    assert find_images(tar(tmp_path / "2.tar", captions), "train").classes == ()


def test_json_beside_images_in_folders_is_mentioned(tmp_path, tar, caplog):
    members = {
        f"{name}/{i}{suffix}": content
        for name in ("cat", "dog")
        for i in range(2)
        for suffix, content in ((".jpg", b"x"), (".json", b'{"label": 7}'))
    }
    with caplog.at_level("INFO"):
        images = find_images(tar(tmp_path / "0.tar", members), "train")
    assert images.classes == ("cat", "dog")
    (line,) = [record.getMessage() for record in caplog.records if "JSON" in record.getMessage()]
    assert all(words in line for words in ("0.tar", "4 JSON", "cat/0.json", "KEY.cls")), line


@pytest.mark.parametrize("label", [b"", b"x", b"-1", b"1e9", b"99999999999", pytest.param(b"9" * 5000, id="long")])
def test_wrong_labels_are_named(tmp_path, tar, label):
    members = {"1.jpg": b"x", "1.cls": b"1", "2.jpg": b"x", "2.cls": label, "3.jpg": b"x", "3.cls": b"2"}
    path = tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=r"0\.tar/2\.jpg"):
        find_images(path, "train")


# ---------------------------------------------------------------------------------------------------- patterns


def test_patterns(tmp_path, tar, monkeypatch):
    for number in range(3):
        tar(tmp_path / "shards" / f"t-{number:03d}.tar", {f"{number}.jpg": b"x"})
    monkeypatch.chdir(tmp_path)
    for pattern, count in (
        ("shards/*.tar", 3),
        ("shards/t-00[01].tar", 2),
        ("shards/t-{000..001}.tar", 2),
        ("*/t-{000,002}.tar", 2),
    ):
        images = list_images(pattern, "train")
        assert len(images) == count
        assert images.root == "shards"
    with pytest.raises(DataError, match=r"t-003\.tar"):
        list_images("shards/t-{000..003}.tar", "train")
    (tmp_path / "shards" / "x.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DataError, match=r"x\.tar\.gz, which is a gzip archive"):
        list_images("shards/*.tar*", "train")
    (tmp_path / "[x]").mkdir()
    with pytest.raises(DataError, match="no images"):
        list_images("[x]", "train")
    with pytest.raises(DataError, match="does not exist"):
        list_images("missing.tar", "train")


def test_a_folder_with_images_is_no_folder_of_archives(tmp_path, tar):
    tar(tmp_path / "cat" / "old.tar", CLASSES)
    (tmp_path / "cat" / "0.jpg").write_bytes(b"x")
    assert relative(list_images(tmp_path, "train")) == ["cat/0.jpg"]
    tar(tmp_path / "old.tar", CLASSES)
    assert relative(list_images(tmp_path, "train")) == ["cat/0.jpg"]


def test_an_empty_shard_among_others_is_refused(tmp_path, tar):
    tar(tmp_path / "0.tar", CLASSES)
    (tmp_path / "1.tar").write_bytes(b"")
    for path in (tmp_path, f"{tmp_path}/*.tar"):
        with pytest.raises(DataError, match=r"1\.tar.* empty"):
            list_images(path, "train")


# -------------------------------------------------------------------------------------------------------- rows


def test_rows_without_names_keep_their_order(tmp_path, parquet):
    images = find_images(parquet(tmp_path / "a.parquet", [None] * 4, [b"x"] * 4, [3, 1, 3, 1]), "train")
    assert relative(images) == ["a.parquet/1", "a.parquet/3", "a.parquet/0", "a.parquet/2"]
    assert images.numbered
    assert images.classes == ("0", "1", "2", "3")


def test_labels_of_rows(tmp_path, parquet):
    named = find_images(parquet(tmp_path / "a.parquet", ["b", "a"], [b"x"] * 2, ["dog", "cat"]), "train")
    assert (named.classes, named.labels.tolist()) == (("cat", "dog"), [0, 1])
    unlabeled = find_images(parquet(tmp_path / "b.parquet", ["b", "a"], [b"x"] * 2, [-1, -1], ["z", "y"]), "train")
    assert relative(unlabeled) == ["b.parquet/1/a", "b.parquet/0/b"]
    assert unlabeled.classes == ()
    declared = find_images(parquet(tmp_path / "c.parquet", ["b", "a"], [b"x"] * 2, [0, 1], ["z", "y"]), "train")
    assert declared.classes == ("z", "y")
    with pytest.raises(DataError, match=r"label 2; expected .* 0 to 1"):
        find_images(parquet(tmp_path / "d.parquet", ["b", "a"], [b"x"] * 2, [0, 2], ["z", "y"]), "train")


@pytest.mark.parametrize(
    ("labels", "numbers", "words"),
    [
        ([True, False, None, True], None, "label"),
        ([True, False, False, True], [0, 0, 1, 1], "bool"),
        ([2.0, 0.0, 2.0, 1.0], [0, 1, 2, 2], "double"),
        ([2.0, 0.5, 2.0, 1.0], [], "0.5"),
    ],
)
def test_labels_that_are_booleans_or_floats(tmp_path, parquet, caplog, labels, numbers, words):
    path = parquet(tmp_path / "a.parquet", list("abcd"), [b"x"] * 4, labels)
    if numbers is None:
        with pytest.raises(DataError, match="no label"):
            find_images(path, "train")
        return
    with caplog.at_level("INFO"):
        images = find_images(path, "train")
    assert images.labels.tolist() == (numbers or [-1] * 4)
    assert any(words in record.getMessage() for record in caplog.records)
    if not numbers:
        with pytest.raises(DataError, match=words):
            require_classes(images, "fine-tuning")


def test_paths_of_rows_do_not_lead_to_files(tmp_path, parquet, image_folder):
    """A row without bytes is not read from its path."""
    names = [str(image_folder / "train/cat/00.jpg"), "../../etc/passwd"]
    images = find_images(parquet(tmp_path / "a.parquet", names, [None, None], [0, 0]), "train")
    for number in range(2):
        with pytest.raises(DataError, match=r"a\.parquet/\d.* no bytes"):
            images.open(number)


def test_tables_without_images(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column of images \(columns: a, label\)"):
        find_images(tmp_path / "a.parquet", "train")
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="several columns of images, x, y"):
        find_images(tmp_path / "b.parquet", "train")
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(data[:-9])
    with pytest.raises(DataError, match=r"c\.parquet"):
        find_images(tmp_path / "c.parquet", "train")


def test_a_label_outside_utf8_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.ipc as ipc

    text = pa.array([b"\xff", b"cat"], pa.binary()).view(pa.string())
    table = pa.table({"image": [b"1", b"2"], "label": text})
    with ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a\.arrow"):
        find_images(tmp_path / "a.arrow", "train")


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_truncated_arrow_file_is_named(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.ipc as ipc

    table = pa.table({"image": [bytes(1000)] * 4, "label": [0, 1, 0, 1]})
    with getattr(ipc, f"new_{kind}")(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"a\.arrow"):
        find_images(tmp_path / "a.arrow", "train")


# ------------------------------------------------------------------------------------------------- binary files


def make_cifar10(folder, per_file: int = 3) -> None:
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (per_file, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def test_cifar_in_pretraining(tmp_path):
    from plsc_mae.data.cifar import read_cifar

    make_cifar10(tmp_path / "cifar-10-batches-bin")
    for path in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        for split, count in (("train", 15), ("val", 3)):
            images, known = find_images(path, split), read_cifar(tmp_path, split)
            assert len(images) == count
            assert images.classes == known.classes
            assert images.labels.tolist() == known.labels.tolist()
            for number in range(count):
                np.testing.assert_array_equal(images.open(number).resize((32, 32)), known.pixels[number])
    assert len(find_images(tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin", "train")) == 3
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        find_images(tmp_path, "train")


def test_cifar_files_of_two_data_sets_are_refused(tmp_path):
    make_cifar10(tmp_path / "a")
    make_cifar10(tmp_path / "b")
    (tmp_path / "b" / "batches.meta.txt").write_text("\n".join("klmnopqrst") + "\n")
    with pytest.raises(DataError, match=r"a/test_batch\.bin.*b/test_batch\.bin"):
        find_images(f"{tmp_path}/*/test_batch.bin", "train")


def test_stl10(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    stored = pixels.transpose(0, 3, 2, 1).tobytes()  # planes column by column
    for name in ("train", "test", "unlabeled"):
        (folder / f"{name}_X.bin").write_bytes(stored)
    for name in ("train", "test"):
        (folder / f"{name}_y.bin").write_bytes(bytes([2, 1]))
    images = find_images(tmp_path, "train")
    assert (images.classes, images.labels.tolist()) == (("airplane", "bird"), [1, 0])
    np.testing.assert_array_equal(images.open(1).resize((96, 96)), pixels[1])
    unlabeled = find_images(folder / "unlabeled_X.bin", "train")
    assert (len(unlabeled), unlabeled.classes) == (2, ())
    (folder / "test_y.bin").write_bytes(b"")
    with pytest.raises(DataError, match="2 images and 0 labels"):
        find_images(tmp_path, "val")
