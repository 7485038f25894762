"""What the doctor says of data sets, good and bad."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.commands import doctor_data
from plsc_mae.commands.doctor_data import DataOptions, examine_data
from plsc_mae.commands.doctor_files import SAMPLED_FILES
from plsc_mae.commands.doctor_findings import Finding
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.errors import ConfigError

pytestmark = [pytest.mark.compat, pytest.mark.once]


def fill(root: Path, *names: str) -> Path:
    """Make images of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(root / name)
    return root


def examine(path: Path) -> tuple[str, list[Finding]]:
    items = list(examine_data(DataOptions(str(path))))
    findings = [item for item in items if isinstance(item, Finding)]
    return "\n".join(item for item in items if not isinstance(item, Finding)), findings


def only(findings: list[Finding]) -> str:
    (found,) = findings
    return str(found)


def test_a_sound_folder(tmp_path):
    classes = ("ant", "bee", "cat", "dog", "eel", "fly", "gnu")
    names = [f"{split}/{name}/0.png" for split in ("train", "val") for name in classes]
    told, findings = examine(fill(tmp_path, *names, "train/ant/1.png"))
    assert findings == []
    assert f"train: 8 images in 7 classes, {tmp_path}/train" in told
    assert "  0 ant, 1 bee, 2 cat, ..., 4 eel, 5 fly, 6 gnu; 1 to 2 images each" in told
    assert told.count("unbalanced, 1 to 2 images: `plsc-mae finetune --balance_classes`") == 1
    assert "val: 7 images in 7 classes" in told
    assert "  intact headers: all 8 files; decoded: all 8 files\n" in told
    assert "  formats of all 8 files: 8 PNG of 8-bit" in told
    assert "  pixels: 8 wide, 8 high\n" in told
    assert "; 1 image each\n" in told.split("val: ")[1]


def test_imagenet_is_recognized(tmp_path):
    (tmp_path / "train").mkdir()
    picture = fill(tmp_path, "a.png") / "a.png"
    for index in range(1000):
        folder = tmp_path / "train" / f"n{index:08d}"
        folder.mkdir()
        (folder / "a.png").symlink_to(picture)
    told, findings = examine(tmp_path)
    assert findings == []
    assert "1000 images in 1000 classes" in told
    assert "0 n00000000, 1 n00000001, 2 n00000002, ..., 997 n00000997, 998 n00000998, 999 n00000999" in told
    assert "ImageNet-1k: classes are numbered as in torchvision" in told
    (tmp_path / "train" / "extra").symlink_to(tmp_path / "train" / "n00000000")
    told, findings = examine(tmp_path)
    assert "ImageNet-1k:" not in told
    assert "has 1001 classes, 1000 of them with names like n01440764, not 1000" in only(findings)


@pytest.mark.parametrize("nesting", ["data", "ILSVRC/Data/CLS-LOC", "train"])
def test_a_folder_too_far_up(tmp_path, nesting):
    root = fill(tmp_path / nesting, "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")
    _, findings = examine(tmp_path)
    assert only(findings) == (f"! --data_path {tmp_path}: train/ is in a folder below it: pass --data_path {root}")


def test_a_missing_package_is_an_error_among_others(tmp_path, monkeypatch):
    def without_package(*_: object) -> None:
        raise ConfigError("x.parquet needs pyarrow")

    monkeypatch.setattr(doctor_data, "list_images", without_package)
    _, findings = examine(tmp_path)
    assert only(findings) == "! x.parquet needs pyarrow"


def test_validation_images_in_one_heap(tmp_path):
    """As ImageNet's archive has them."""
    _, findings = examine(fill(tmp_path, "train/a/0.png", "train/b/0.png", "val/ILSVRC2012_val_00000001.png"))
    assert only(findings).startswith(f"? {tmp_path}/val has no class folders")
    assert "valprep.sh" in only(findings)


def test_classes_that_differ(tmp_path):
    names = [f"train/{i}x/0.png" for i in range(9)] + ["val/0x/0.png", "val/other/0.png"]
    _, findings = examine(fill(tmp_path, *names))
    assert only(findings).startswith(f"! {tmp_path}/val has classes that {tmp_path}/train does not have: 'other'; ")


def test_validation_images_of_some_classes(tmp_path):
    lines, findings = examine(fill(tmp_path, "train/a/0.png", "train/b/0.png", "train/c/0.png", "val/b/0.png"))
    assert not findings
    assert "images of 1 of the 3 classes" in lines
    assert "none of 'a', 'c'" in lines


def test_numbers_are_sorted_as_names(tmp_path):
    _, findings = examine(fill(tmp_path, *(f"train/{i}/0.png" for i in range(11))))
    assert "so folder 10 is class 2: pad" in only(findings)
    assert not findings[0].stops


def test_a_single_class(tmp_path):
    _, findings = examine(fill(tmp_path, "train/all/0.png"))
    assert "one class only, 'all'" in only(findings)


def test_unreadable_images(tmp_path):
    fill(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(3)))
    for name in ("a/2", "b/0"):
        (tmp_path / f"train/{name}.png").write_bytes(b"<html>")
    _, findings = examine(tmp_path)
    assert only(findings).startswith(
        f"! 2 of 6 images of {tmp_path}/train cannot be used: a/2.png: it is not an image of a known format; b/0.png: "
    )
    assert only(findings).endswith("give `plsc-mae pretrain --bad_image skip` and `plsc-mae finetune --bad_image skip`")


def test_most_images_have_other_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    fill(tmp_path, "train/a/0.png", "train/b/0.png")
    values = np.zeros((8, 8, 4), np.uint16)
    for number in range(3):
        tifffile.imwrite(tmp_path / f"train/a/{number}.tif", values, photometric="minisblack", planarconfig="contig")
    told, findings = examine(tmp_path)
    assert only(findings).startswith(f"! 3 of 5 files of {tmp_path}/train have 4 bands")
    assert "read as" not in told  # the finding says that they cannot be
    assert "--in_chans 4" in only(findings)
    assert "skip" not in only(findings)


def test_damage_that_only_decoding_shows(tmp_path):
    """In the middle of the pixel data, of one of the sampled files."""
    fill(tmp_path, "train/a/0.png", "train/b/0.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "train/b/0.png"
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[4000:4100] = bytes(100)
    path.write_bytes(content)
    _, findings = examine(tmp_path)
    assert "cannot be used: b/0.png: " in only(findings)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("12 bits", "? 3 of 4 images of {} have 16 bits per band and sampled values up to 4000"),
        ("float", "! 3 of 4 images of {} have 32-bit or signed 16-bit pixels and need a range"),
        ("bands", "? 3 of 4 images of {} have alpha or a fourth band"),
        ("pages", "? 3 of 4 images of {} have several pages"),
    ],
)
def test_depth_bands_and_pages(tmp_path, kind, expected):
    values = np.linspace(0, 4000, 64).reshape(8, 8)
    for number in range(3):
        if kind == "12 bits":
            Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"{number}.png")
        elif kind == "float":
            Image.fromarray(values.astype(np.float32)).save(tmp_path / f"{number}.tif")
        elif kind == "bands":
            Image.fromarray((values // 16).astype(np.uint8)[..., None].repeat(4, 2)).save(tmp_path / f"{number}.png")
        else:
            page = Image.new("RGB", (8, 8))
            page.save(tmp_path / f"{number}.tif", save_all=True, append_images=[page])
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    _, findings = examine(tmp_path)
    text = only(findings)
    assert text.startswith(expected.format(tmp_path))
    assert f"{tmp_path}/0." in text
    assert ("--pixel_range auto" in text) == (kind in ("12 bits", "float"))


@pytest.mark.parametrize(
    ("values", "suffix", "pixel_format", "expected"),
    [
        (
            np.full((8, 8), 4000, np.uint16),
            "png",
            RGB,
            ["2 PNG of 16-bit gray", "--in_chans 1", "--pixel_range 0 4095"],
        ),
        (np.full((8, 8), 9, np.uint8), "png", RGB, ["2 PNG of 8-bit gray", "--in_chans 1"]),
        (np.full((8, 8, 3), 9, np.uint8), "png", RGB, ["2 PNG of 8-bit color", "read as RGB\n"]),
        (np.full((8, 8, 5), 9, np.float32), "npy", PixelFormat(5), ["2 NPY of 32-bit float 5 bands", "as 5 channels"]),
    ],
)
def test_the_content_of_files_and_the_options_for_it(tmp_path, values, suffix, pixel_format, expected):
    for name in "ab":
        (tmp_path / name).mkdir()
        if suffix == "npy":
            np.save(tmp_path / name / "0.npy", values)
        else:
            Image.fromarray(values).save(tmp_path / name / f"0.{suffix}")
    items = [str(item) for item in examine_data(DataOptions(str(tmp_path), pixel_format=pixel_format))]
    text = "\n".join([*items, ""])
    assert all(part in text for part in expected), text
    assert ("--pixel_range" in text) == (values.dtype != np.uint8)
    assert ("--in_chans" in text) == (values.ndim == 2)


def deep_images(folder: Path, largest: int) -> None:
    folder.mkdir(parents=True)
    values = np.linspace(0, largest, 64).reshape(8, 8).astype(np.uint16)
    for number in range(2):
        Image.fromarray(values).save(folder / f"{number}.png")


def test_one_range_for_both_splits(tmp_path):
    for name in "ab":
        deep_images(tmp_path / "train" / name, 9000)
        deep_images(tmp_path / "val" / name, 20000)
    gray = PixelFormat(1)
    told = [str(item) for item in examine_data(DataOptions(str(tmp_path), pixel_format=gray))]
    (advice,) = (line for line in told if "--pixel_range" in line)
    assert "--pixel_range 0 32767" in advice
    assert [line.split()[-1] for line in told if "beyond 8 bits: " in line] == ["9000", "20000"]

    narrow = DataOptions(str(tmp_path), pixel_format=gray._replace(range=PixelRange(0, 10000)))
    sampled = DataOptions(str(tmp_path), pixel_format=gray, samples_range=True)
    for options, high in ((narrow, 10000), (sampled, 16383)):
        (finding,) = (item for item in examine_data(options) if isinstance(item, Finding))
        assert str(finding).startswith(f"? sampled values from 0 to 20000 are beyond the pixel range 0 to {high}")
    wide = DataOptions(str(tmp_path), pixel_format=gray._replace(range=PixelRange(0, 20000)))
    assert not [item for item in examine_data(wide) if isinstance(item, Finding) or "--pixel_range" in item]


def test_a_list_with_repeated_lines(tmp_path):
    fill(tmp_path, "x/0.png", "x/1.png")
    (tmp_path / "x/1.png").write_bytes(b"")
    for name in ("val", "repeated"):
        (tmp_path / f"{name}.txt").write_text("x/0.png 0\n" + "x/1.png 1\n" * (1 if name == "val" else 2))
    told, findings = examine(tmp_path / "repeated.txt")
    assert f"no validation images for `finetune`: give --eval_data_path {tmp_path}/val.txt" in told
    assert "plsc-mae split" not in told
    text = only(findings)
    assert text.startswith("! 2 of 3 images")
    assert text.count("x/1.png") == 1
    assert "repair such files or remove their lines" in text
    options = DataOptions(str(tmp_path / "repeated.txt"), str(tmp_path / "val.txt"))
    told = "\n".join(map(str, examine_data(options)))
    assert "val: 2 images in 2 classes" in told
    assert "no validation images" not in told
    told, _ = examine(tmp_path / "val.txt")
    assert f"plsc-mae split {tmp_path}/val.txt DST" in told


def test_a_missing_list_of_validation_images_is_named_by_its_flag(tmp_path):
    fill(tmp_path, "a/0.png", "b/0.png")
    (finding,) = (item for item in examine_data(DataOptions(str(tmp_path), "nowhere")) if isinstance(item, Finding))
    assert str(finding).startswith("! --eval_data_path nowhere does not exist")  # the user named it


def test_one_image_and_lists(tmp_path):
    fill(tmp_path, "x/0.png", "x/1.png")
    (tmp_path / "list.txt").write_text("x/0.png 0\nx/1.png 1\n")
    told, findings = examine(tmp_path / "list.txt")
    assert findings == []
    assert "train: 2 images in 2 classes" in told
    told, findings = examine(fill(tmp_path / "flat", "0.png"))
    assert findings == []
    assert "train: 1 image in no classes" in told
    assert "a folder per class, or a list file with labels" in told
    assert f"`plsc-mae split LABELS.csv DST --image_path {tmp_path}/flat`" in told
    assert "  intact headers: the only file; decoded: the only file\n" in told


def test_samples_are_explained(tmp_path):
    """More files than are sampled, and files of a sample that cannot be opened."""
    fill(tmp_path, *(f"{number:02}.png" for number in range(SAMPLED_FILES + 6)))
    told, findings = examine(tmp_path)
    assert findings == []
    assert "intact headers: all 70 files; decoded: 64 of 70 files, evenly spaced in the list\n" in told
    assert "formats of 64 of 70 files, evenly spaced in the list: 64 PNG of 8-bit" in told
    for number in range(6):
        (tmp_path / f"{number:02}.png").unlink()
    (tmp_path / "30.png").write_bytes(b"damaged")
    Image.new("L", (8, 8)).save(tmp_path / "31.png")
    told, _ = examine(tmp_path)
    assert "formats of all 64 files: 62 PNG of 8-bit color (3 bands), 1 PNG of 8-bit gray (1 band), 1 that " in told


def test_names_that_no_font_has_are_a_finding(tmp_path):
    unknown = "\U000fffff"  # a private character
    _, findings = examine(
        fill(tmp_path, *(f"{split}/{name}/0.png" for split in ("train", "val") for name in ("a", unknown)))
    )
    assert only(findings).startswith("? no font")
    assert f"'{unknown}' as #1" in only(findings)


def test_sizes_are_compared_with_the_input_of_the_run(tmp_path, capsys):
    fill(tmp_path, "a/0.png", "b/0.png")  # of 8 x 8 pixels
    for size, advice in (
        ("", "the default input of 224"),
        ("--input_size 24 16", "the input of 16"),
        ("--input_size 8", ""),
    ):
        main(f"doctor --data_path {tmp_path} {size}".split())
        out = capsys.readouterr().out
        assert (f"smaller than {advice} pixels" in out) if advice else ("smaller" not in out)
    assert main(["doctor", "--input_size", "64"]) == 2
    assert "--data_path" in capsys.readouterr().err


def test_channels_and_bands_that_contradict_each_other_are_refused_as_by_a_run(tmp_path, capsys):
    fill(tmp_path, "a/0.png", "b/0.png")
    assert main(f"doctor --data_path {tmp_path} --in_chans 1 --bands 1 2 3".split()) == 2
    assert "--in_chans 1 contradicts the 3 --bands" in capsys.readouterr().err


def test_hidden_files_are_counted(tmp_path):
    fill(tmp_path, "train/a/0.png", "train/b/0.png", "train/a/._0.png", "train/@eaDir/0.png", "__MACOSX/train/a/0.png")
    told, findings = examine(tmp_path)
    assert findings == []
    assert "train: 2 images in 2 classes" in told
    assert "  ignored 3 hidden or system entries, such as " in told
    shutil.rmtree(tmp_path / "train")
    _, findings = examine(tmp_path)
    assert "no images" in only(findings)  # the copies in __MACOSX are no data set


def test_images_left_out(tmp_path):
    fill(tmp_path, "a/0.png", "b/0.png", "1.png", "2.png", "a/1.gif", "b/1.gif", "b/2.gif")
    told, findings = examine(tmp_path)
    assert "intact headers: all 2 files; decoded: all 2 files" in told
    assert f"not opened: 5 other files of {tmp_path}" in told
    assert [found.stops for found in findings] == [False, False]
    assert f"2 images of {tmp_path} beside the class folders" in str(findings[0])
    assert "3 files of other formats (3 .gif" in str(findings[1])


def test_a_class_called_train(tmp_path):
    _, findings = examine(fill(tmp_path, "train/0.png", "bus/0.png", "car/0.png"))
    assert "ambiguous" in only(findings)
    assert findings[0].stops


def test_archives_and_programs(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"\x1f\x8b" + bytes(100))
    _, findings = examine(tmp_path / "a.tgz")
    assert only(findings).startswith(f"! --data_path {tmp_path}/a.tgz is a gzip archive; ")
    _, findings = examine(tmp_path)
    assert "a.tgz is a gzip archive: unpack it" in only(findings)


def test_names_that_are_not_utf8(tmp_path):
    names = [f"train/{os.fsdecode(name.encode('gbk'))}/0.png" for name in ("\u72d7", "\u72d0")]
    told, findings = examine(fill(tmp_path, *names, "train/cat/0.png"))
    assert "'\u72d7' in GBK" in only(findings)
    assert r"0 cat, 1 \xb9\xb7, 2 \xba\xfc;" in told
    assert (
        r"  2 names with bytes that are not UTF-8 or cannot be shown; those are printed and written as \xNN: " in told
    )


def test_lists_that_start_at_1(tmp_path):
    fill(tmp_path, "x/0.png", "x/1.png")
    (tmp_path / "list.txt").write_text("x/0.png 1\nx/1.png 2\n")
    _, findings = examine(tmp_path / "list.txt")
    assert "no label 0, only 1 to 2" in only(findings)
