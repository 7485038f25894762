"""Names of panels and the files that they must not replace."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plsc_mae.commands.pictures import PanelFolder, PictureReader, Sheet
from plsc_mae.data.imagefolder import ImageList, PathTable
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import DataError

PANEL = Image.new("RGB", (4, 4), "red")


def images(root: Path, *names: str) -> ImageList:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, format="PNG")
    return ImageList(PathTable(names), np.full(len(names), -1, np.int64), (), str(root))


def draw(folder: Path, found: ImageList, command: str = "reconstruct", network: str = "a.pd") -> list[str]:
    panels = PanelFolder(command, str(folder), found, range(len(found)), found.root, network)
    saved = [panels.save(PANEL, index).name for index in range(len(found))]
    panels.save_sheet(PANEL)
    return saved


@pytest.mark.parametrize(
    ("names", "panels"),
    [
        (["a/0.png", "b/0.png"], ["a_0.png", "b_0.png"]),
        (["a/0.png", "a/0.jpg", "a/1.jpg"], ["a_0.png.png", "a_0.jpg.png", "a_1.png"]),
        (["a/b_0.png", "a_b/0.png"], ["a_b_0.png.png", "a_b_0.png-2.png"]),
        (["a/X.png", "a/x.png"], ["a_X.png.png", "a_x.png-2.png"]),
        (["sheet.png", "Sheet.jpg", "x.png"], ["sheet.png.png", "Sheet.jpg.png", "x.png"]),
        (["sheet.webp"], ["sheet.webp.png"]),
        (["sheet", "x.png"], ["sheet-2.png", "x.png"]),
        (["../../a/0.png", "./b/0.png", "../.c/0.png"], ["a_0.png", "b_0.png", "c_0.png"]),
        (["../a/0.png", "a/0.png", "../../a/0.png"], ["a_0.png.png", "a_0.png-2.png", "a_0.png-3.png"]),
    ],
)
def test_every_image_has_a_panel_of_its_own(tmp_path, names, panels):
    """Also on a file system that ignores case; a repeated command writes the same files."""
    found = images(tmp_path / "in", *names)
    for _ in range(2):
        assert draw(tmp_path / "out", found) == panels
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*panels, "sheet.png"])


def test_absolute_paths_have_no_leading_underscore(tmp_path):
    (name,) = draw(tmp_path / "out", images(tmp_path / "list", str(tmp_path / "in/x.png")))
    assert name == f"{str(tmp_path / 'in/x').lstrip('/').replace('/', '_')}.png"


def test_long_names_are_shortened(tmp_path):
    names = [f"{'a' * 120}/{'b' * 120}{end}.png" for end in "xy"]
    saved = draw(tmp_path / "out", images(tmp_path / "in", *names))
    assert len(set(saved)) == 2
    assert max(map(len, saved)) < 255


def test_panels_of_other_images_stay(tmp_path):
    """Two calls for images of one name in different folders."""
    first, second = (images(tmp_path / name, "x.png") for name in "ab")
    assert [draw(tmp_path / "out", found) for found in (first, second, first)] == [["x.png"], ["x.png.png"], ["x.png"]]


def test_pictures_of_another_network_are_not_replaced_silently(tmp_path, caplog):
    """Also if its name is not UTF-8; a repeated command and pictures of an unknown network cause no warning."""
    found, gbk = images(tmp_path / "in", "x.png", "y.png"), b"\xb9\xb7.pd".decode("utf-8", "surrogateescape")
    draw(tmp_path / "out", found)
    draw(tmp_path / "out", found)
    PANEL.save(tmp_path / "out/x.png", pnginfo=_marked(tmp_path / "out/x.png"))
    assert not caplog.records
    draw(tmp_path / "out", found, network=gbk)
    draw(tmp_path / "out", found)
    first, second = (record.message for record in caplog.records)
    assert first.startswith(f"2 pictures of a.pd in {tmp_path}/out will be replaced by those of ")
    assert second.startswith(rf"3 pictures of \xb9\xb7.pd in {tmp_path}/out will be replaced by those of a.pd")
    assert "--save_path" in second
    draw(tmp_path / "out", found, "explain", gbk)
    assert len(caplog.records) == 2


def _marked(path: Path) -> PngInfo:
    """The metadata of a panel without the name of the network."""
    info = PngInfo()
    with Image.open(path) as panel:
        info.add_text("Software", panel.info["Software"])
    return info


def fill(sheet: Sheet, indices: Iterable[int]) -> list[int]:
    """Give a sheet panels whose pixels are the number of the image; return the numbers of its rows."""
    for index in indices:
        sheet.add({"image": np.full((1, 2, 2, 3), index, np.uint8)}, index)
    return sheet.rows()["image"][:, 0, 0, 0].tolist() if sheet.rows() else []


@pytest.mark.parametrize(
    ("chosen", "unreadable", "rows"),
    [
        (range(10), [], list(range(10))),
        (range(40), [], list(range(0, 40, 4))),
        (range(0, 80, 2), [0, 8, 72], [2, 10, *range(16, 72, 8), 74]),  # the next image stands in
        (range(40), [36, 37, 38, 39], list(range(0, 36, 4))),
        (range(1), [], []),
    ],
)
def test_a_sheet_shows_evenly_spaced_images(tmp_path, caplog, chosen, unreadable, rows):
    found = ImageList(PathTable([f"{i}.png" for i in range(80)]), np.full(80, -1, np.int64), (), str(tmp_path))
    sheet, drawn = Sheet(found, chosen), [index for index in chosen if index not in unreadable]
    with caplog.at_level(logging.INFO, logger="plsc_mae"):
        assert fill(sheet, drawn) == rows
    assert sheet.captions() == [f"{index}.png" for index in rows or drawn]
    assert (f"{len(rows)} of these {len(drawn)} images" in caplog.text) == (len(rows) < len(drawn) and bool(rows))


def test_captions_do_not_lead_out_of_the_folder_of_the_list(tmp_path):
    names = ["../../photos/a.png", "/photos/b.png", "photos/../c.png", ".../d.png"]
    sheet = Sheet(ImageList(PathTable(names), np.full(4, -1, np.int64), (), str(tmp_path)), range(4))
    fill(sheet, range(4))
    assert sheet.captions() == ["photos/a.png", *names[1:]]


@pytest.mark.parametrize("name", ["x.png", "sheet.png"])
def test_files_of_the_user_stay(tmp_path, name):
    out = tmp_path / "out"
    (picture,) = images(out, name).paths
    before = (out / picture).read_bytes()
    with pytest.raises(DataError, match=rf"{out}/{name}: it exists and is not a result .*--save_path"):
        draw(out, images(tmp_path / "in", "x.png"))
    assert (out / name).read_bytes() == before
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize("place", ["in", "in/panels", "in/../in", "link"])
def test_panels_are_not_written_among_the_images(tmp_path, place):
    found = images(tmp_path / "in", "x.png", "a/x.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match=r"--save_path .*where the images are"):
        draw(tmp_path / place, found)
    assert draw(tmp_path, found) == ["x.png", "a_x.png"]  # the parent folder is allowed


def test_one_image_may_have_its_panel_in_its_folder_under_another_name(tmp_path):
    found = images(tmp_path, "x.jpg")
    PanelFolder("explain", str(tmp_path), found, [0], str(tmp_path / "x.jpg"), "a.pd").save(PANEL, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jpg", "x.png"]
    found = images(tmp_path, "y.png")
    with pytest.raises(DataError, match=r"y\.png: it exists"):
        PanelFolder("explain", str(tmp_path), found, [0], str(tmp_path / "y.png"), "a.pd")


def test_unreadable_pictures_are_counted(tmp_path):
    found = images(tmp_path, *(f"{i}.png" for i in range(4)))
    for name in ("0.png", "2.png"):
        (tmp_path / name).write_bytes(b"no image")
    reader = PictureReader(found, range(4), ResizeCenterCrop((8, 8), 8))
    assert [index for index, _ in reader] == [1, 3]
    assert reader.unreadable == 2
    with pytest.raises(DataError, match=r"2\.png"):
        list(PictureReader(found, [2], ResizeCenterCrop((8, 8), 8)))
