"""Most files, or a few, whose bands do not fit the channels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data.band_misfit import describe_misfit, reason_among
from plsc_mae.data.check import examine_file
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.pixels import PixelFormat

tifffile = pytest.importorskip("tifffile")
pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def mixed(tmp_path):
    """Three files of four bands of 16 bits, a photograph, and a damaged file."""
    for number in range(3):
        values = np.arange(8 * 8 * 4, dtype=np.uint16).reshape(8, 8, 4)
        tifffile.imwrite(tmp_path / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
    Image.new("RGB", (8, 8)).save(tmp_path / "preview.png")
    (tmp_path / "z.png").write_bytes(b"<html>")
    return tmp_path


def examined(folder, pixel_format):
    """The list of a folder, and the reports of its bad files."""
    images = find_images(folder, "train")
    reports = {index: examine_file(images.path(index), pixel_format) for index in range(len(images))}
    return images, {index: report for index, report in reports.items() if report.reason}


@pytest.mark.parametrize(("pixel_format", "wanted"), [(PixelFormat(), "RGB"), (PixelFormat(13), "13 channels")])
def test_most_files_have_other_bands(mixed, pixel_format, wanted):
    images, bad = examined(mixed, pixel_format)
    text = describe_misfit(images, bad, pixel_format)
    assert f"3 of 5 files of {mixed} have 4 bands" in text
    assert f"as {wanted}, the first is {mixed}/0.tif" in text
    assert "--in_chans 4, or --bands" in text
    assert "docs/your-images.md" in text
    assert "--bad_image" not in text


def test_a_few_files_have_other_bands(mixed):
    """The options that would read such a file would make all others unreadable."""
    images, bad = examined(mixed, PixelFormat(4))
    assert describe_misfit(images, bad, PixelFormat(4)) == ""
    preview, damaged = (reason_among(images, index, report, PixelFormat(4)) for index, report in bad.items())
    assert f"{mixed}/preview.png: it has 3 bands, unlike the other files" in preview
    assert "--" not in preview
    assert "not an image" in damaged


def test_a_single_file_keeps_its_remedy(mixed):
    for path in mixed.iterdir():
        if path.name != "preview.png":
            path.unlink()
    images, bad = examined(mixed, PixelFormat(4))
    assert "--in_chans 3" in describe_misfit(images, bad, PixelFormat(4))


def test_gray_without_a_range(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tif")
    images, bad = examined(tmp_path, PixelFormat())
    text = describe_misfit(images, bad, PixelFormat())
    assert "--in_chans 1, or --pixel_range auto" in text
