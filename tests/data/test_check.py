"""The check of headers and ends of files: what it finds, and that it reports no usable file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data import check
from plsc_mae.data.check import Note, check_files, examine_file
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.pixels import PixelFormat

pytestmark = [pytest.mark.compat, pytest.mark.once]
NAMES = ("a.jpg", "a.png", "a.tif", "a.webp", "a.bmp", "a.ppm", "a.gif")


@pytest.mark.parametrize("name", NAMES)
def test_whole_and_truncated_files(tmp_path, picture, name):
    path = tmp_path / name
    picture(0).save(path)
    assert examine_file(str(path)) == (Note(0), "", 0)
    content = path.read_bytes()
    for kept in (0, 5, len(content) // 2):
        path.write_bytes(content[:kept])
        notes, reason, _ = examine_file(str(path))
        assert notes & Note.BAD
        assert str(path) in reason
    path.write_bytes(content + b"\0" * 100)  # usable
    assert examine_file(str(path)) == (Note(0), "", 0)


@pytest.mark.parametrize("content", [b"<html></html>", b"\xff\xd8\xff\xe0 garbage \xff\xd9", b"\x89PNG\r\n\x1a\nIEND"])
def test_files_that_are_no_images(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert examine_file(str(tmp_path / "a.jpg")).notes == Note.BAD


def test_missing_files_and_folders_are_bad(tmp_path):
    for path in (tmp_path, tmp_path / "none.jpg"):
        assert examine_file(str(path)).notes == Note.BAD


def test_properties(tmp_path, picture):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    picture(0).convert("RGBA").save(tmp_path / "alpha.png")
    picture(0).save(tmp_path / "pages.tif", save_all=True, append_images=[picture(1)])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    expected = {
        "deep.png": Note.DEEP,
        "alpha.png": Note.BANDS,
        "pages.tif": Note.PAGES,
        "float.tif": Note.DEEP | Note.BAD,
    }
    for name, notes in expected.items():
        assert examine_file(str(tmp_path / name)).notes == notes
    assert examine_file(str(tmp_path / "float.tif"), PixelFormat(range=PixelRange(0, 1))).notes == Note.DEEP


@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_is_checked_by_one_process(image_folder, monkeypatch, workers):
    monkeypatch.setattr(check, "_FEW_FILES", 0)
    monkeypatch.setattr(check, "_BATCH", 2)
    images = find_images(image_folder, "train")
    bad = [0, 7, 21]
    for index in bad:
        (image_folder / "train" / images.paths[index]).write_bytes(b"no image")
    parts = [check_files(images, num_workers=workers, rank=rank, world_size=2) for rank in (0, 1)]
    assert np.flatnonzero(parts[0] + parts[1]).tolist() == bad
    assert (parts[0] * parts[1] == 0).all()
    np.testing.assert_array_equal(check_files(images, num_workers=workers), parts[0] + parts[1])


def test_a_fourth_band_is_named_by_the_check(tmp_path, messages):
    """Training decodes the files in data workers, whose warnings are not in the log of the run."""
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(64 * 64 * 4, dtype=np.uint16).reshape(64, 64, 4)
    for photometric in ("rgb", "minisblack"):
        tifffile.imwrite(tmp_path / f"{photometric}.tif", values, photometric=photometric, planarconfig="contig")
    check_files(find_images(tmp_path, "train"), num_workers=0, pixel_format=PixelFormat(range=PixelRange(0, 65535)))
    assert sum("more than three bands" in text for text in messages) == 1
