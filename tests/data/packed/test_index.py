"""Indexes of tar and zip archives, intact, hostile and damaged."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from plsc_mae.data.packed import indexed
from plsc_mae.data.packed.index import Index, index_path, read_index, read_tar, read_zip, safe_name, write_index
from plsc_mae.data.packed.indexed import IndexedArchive
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]


def members(index: Index, archive: Path) -> dict[str, bytes]:
    data = archive.read_bytes()
    places = {name: index.place(name) for name in index.names}
    return {name: data[place.offset : place.offset + place.size] for name, place in places.items()}


def add(
    archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./a/b.jpg", "a/b.jpg"),
        ("/etc/passwd", "etc/passwd"),
        ("a//./b", "a/b"),
        ("../a", None),
        ("a/../../b", None),
        ("", None),
        ("./", None),
        ("a\0b", None),
        ("..a/b", "..a/b"),
    ],
)
def test_names_stay_inside_the_archive(name, expected):
    assert safe_name(name) == expected


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_tar_archive(tmp_path, kind):
    names = ["b.jpg", "./a/" + "x" * 80 + "/1.jpg", os.fsdecode("狗".encode("gbk")) + "/é.jpg", "empty.jpg"]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=kind, encoding="utf-8", errors="surrogateescape") as archive:
        add(archive, "folder", kind=tarfile.DIRTYPE)
        for name in names:
            add(archive, name, b"" if name == "empty.jpg" else name.encode("utf-8", "surrogateescape"))
        add(archive, "b.jpg", b"the last one counts")
        add(archive, "hard.jpg", kind=tarfile.LNKTYPE, link=names[1])
        add(archive, "a/soft.jpg", kind=tarfile.SYMTYPE, link="../b.jpg")
        add(archive, "out.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(archive, "loop.jpg", kind=tarfile.SYMTYPE, link="loop.jpg")
        add(archive, "../outside.jpg", b"x")
    found = members(read_tar(str(path)), path)
    content = names[1].encode()
    assert found == {
        "b.jpg": b"the last one counts",
        names[1][2:]: content,
        names[2]: names[2].encode("utf-8", "surrogateescape"),
        "empty.jpg": b"",
        "hard.jpg": content,
        "a/soft.jpg": b"the last one counts",
    }


@pytest.mark.parametrize("keep", [700, 1500, 3 * 512, 2048 + 100])  # 3 * 512: behind the first member
def test_a_truncated_tar_archive_is_refused(tmp_path, tar, keep):
    path = tar(tmp_path / "a.tar", {f"{i}.jpg": bytes(600) for i in range(4)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.tar"):
        read_tar(str(path))


def test_a_damaged_header_is_refused(tmp_path, tar):
    path = tar(tmp_path / "a.tar", {f"{i}.jpg": bytes(600) for i in range(4)})
    data = bytearray(path.read_bytes())
    data[3 * 512 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar .*byte 1536"):
        read_tar(str(path))


@pytest.mark.parametrize("size", [2**62, 2**70, -1024])
def test_a_wrong_size_in_a_header_is_refused(tmp_path, size):
    info = tarfile.TarInfo("1.jpg")
    info.size = size
    first = tarfile.TarInfo("0.jpg").tobuf()
    (tmp_path / "a.tar").write_bytes(first + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DataError, match=r"a\.tar"):
        read_tar(str(tmp_path / "a.tar"))


def test_a_zip_member_of_an_impossible_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"one")
        archive.infolist()[0].file_size = 2**63
    with pytest.raises(DataError, match=r"a\.zip"):
        read_zip(str(tmp_path / "a.zip"))


def test_an_index_file_is_used_while_it_fits(tmp_path, tar, monkeypatch):
    path = tar(tmp_path / "a.tar", {"a/1.jpg": b"one", "a/\tx.jpg": b"two"})
    index = read_tar(str(path))
    write_index(path, [(name, index.place(name), "cat") for name in index.names])
    assert index_path(path).read_text().splitlines()[2].split("\t") == ["512", "3", "cat", "a/1.jpg"]
    stored = read_index(str(path))
    assert members(stored, path) == {"a/1.jpg": b"one", "a/\tx.jpg": b"two"}
    assert list(stored.labels) == ["cat", "cat"]
    monkeypatch.setattr(indexed.indexes, "read_tar", lambda _: pytest.fail("the archive was read"))
    assert IndexedArchive(str(path), is_zip=False).open_member("a/1.jpg")[0].read() == b"one"


@pytest.mark.parametrize("change", ["other archive", "other size", "garbage", "binary", "negative", "outside"])
def test_an_index_file_that_does_not_fit_is_ignored(tmp_path, tar, change):
    path = tar(tmp_path / "a.tar", {"1.jpg": b"one", "2.jpg": bytes(2000)})
    index = read_tar(str(path))
    write_index(path, [(name, index.place(name), "") for name in index.names])
    text = index_path(path).read_text()
    if change == "other archive":  # of the same size
        tar(path, {"1.jpg": bytes(2000), "2.jpg": b"one"})
    elif change == "other size":
        tar(path, {"1.jpg": bytes(20000)})
    else:
        wrong = {"garbage": text + "x\n", "binary": "\0" * 100, "negative": text.replace("\t3\t", "\t-3\t")}
        wrong["outside"] = text.replace("512\t3\t", f"{2**64}\t3\t")
        index_path(path).write_text(wrong[change])
    assert read_index(str(path)) is None
    archive = IndexedArchive(str(path), is_zip=False)
    with tarfile.open(path) as expected:
        assert sorted(archive.index.names) == sorted(expected.getnames())


def test_the_index_of_a_large_archive_is_kept(tmp_path, tar, monkeypatch):
    path = tar(tmp_path / "a.tar", {"1.jpg": b"one", "1.cls": b"7", "2.jpg": b"two"})
    monkeypatch.setattr(indexed, "CACHED_BYTES", 0)
    first = IndexedArchive(str(path), is_zip=False)
    with monkeypatch.context() as patched:
        patched.setattr(indexed.indexes, "read_tar", lambda _: pytest.fail("the archive was read"))
        second = IndexedArchive(str(path), is_zip=False)
    assert list(second.index.labels) == list(first.index.labels) == ["", "7", ""]
    tar(path, {"3.jpg": b"three"})
    assert list(IndexedArchive(str(path), is_zip=False).index.names) == ["3.jpg"]


# -------------------------------------------------------------------------------------------------------- zip


def test_members_of_a_zip_archive(tmp_path):
    path, gbk = tmp_path / "a.zip", "狗".encode("gbk")
    windows = zipfile.ZipInfo("x")
    windows.filename, windows.create_system = "cat\\1.jpg", 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("../outside.jpg", b"x")
        archive.writestr("狗.jpg", b"utf-8")
        archive.writestr(windows, b"windows")
        archive.writestr("GG.jpg", b"gbk")
    path.write_bytes(path.read_bytes().replace(b"GG.jpg", gbk + b".jpg"))  # bytes without a mark of their encoding
    index = read_zip(str(path))
    assert set(index.names) == {"cat/1.jpg", "狗.jpg", os.fsdecode(gbk) + ".jpg"}
    archive = IndexedArchive(str(path), is_zip=True)
    assert [archive.open_member(name)[0].read() for name in ("cat/1.jpg", os.fsdecode(gbk) + ".jpg")] == [
        b"windows",
        b"gbk",
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_members(tmp_path, method):
    path, content = tmp_path / "a.zip", b"content " * 100
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.jpg", content)
    archive = IndexedArchive(str(path), is_zip=True)
    if method == zipfile.ZIP_BZIP2:
        with pytest.raises(ValueError, match="method 12"):
            archive.open_member("a.jpg")
        return
    file, size = archive.open_member("a.jpg")
    assert (file.read(), size) == (content, 800)
    file.seek(-3, io.SEEK_END)
    assert file.read(10) == b"nt "
    if method == zipfile.ZIP_DEFLATED:
        data = bytearray(path.read_bytes())
        data[45] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            IndexedArchive(str(path), is_zip=True).open_member("a.jpg")


def test_a_bomb_is_not_unpacked(tmp_path):
    """The directory announces 10 bytes, the member has 10 MB."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(10_000_000))
    data = path.read_bytes()
    path.write_bytes(data.replace((10_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="size"):
        IndexedArchive(str(path), is_zip=True).open_member("a.jpg")


def test_encrypted_and_damaged_zip_archives(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"x")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted"):
        IndexedArchive(str(path), is_zip=True).open_member("a.jpg")
    path.write_bytes(data[:-10])
    with pytest.raises(DataError, match=r"a\.zip"):
        IndexedArchive(str(path), is_zip=True)


def test_a_label_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.cls", b"1")
        archive.writestr("0.jpg", b"x")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip/0\.cls.*encrypted"):
        IndexedArchive(str(path), is_zip=True)
