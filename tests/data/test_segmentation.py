"""Pairs of images and masks: layouts, kinds of PNG, and mistakes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.segmentation import UNLABELED, count_pixels, find_masked_images, read_mask
from plsc_mae.errors import DataError

INDICES = np.array([[0, 1, 2], [3, 0, 1]], np.uint8)


def write_pair(root: Path, name: str = "a", mask: Image.Image | None = None, folders=("images/train", "masks/train")):
    image, masks = (root / folder / name for folder in folders)
    for path in (image, masks):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(image.with_suffix(".jpg"))
    (mask or Image.fromarray(INDICES)).save(masks.with_suffix(".png"))
    return masks.with_suffix(".png")


@pytest.mark.parametrize("folders", [("images/train", "masks/train"), ("images/training", "annotations/training")])
def test_pairs_have_equal_stems_in_equal_subfolders(tmp_path, folders):
    written = [write_pair(tmp_path, name, folders=folders) for name in ("b", "a", "city/a", "city/b.c")]
    found = find_masked_images(str(tmp_path), "train")
    assert sorted(found.masks) == sorted(map(str, written))
    for number, mask in enumerate(found.masks):
        image = Path(found.images.path(number))
        assert Path(mask).relative_to(tmp_path / folders[1]).with_suffix("") == image.relative_to(
            tmp_path / folders[0]
        ).with_suffix("")
    taken = found.take(np.array([2, 0]))
    assert taken.masks == (found.masks[2], found.masks[0])
    assert taken.images.path(0) == found.images.path(2)


def as_palette() -> Image.Image:
    picture = Image.fromarray(INDICES).convert("P")
    picture.putdata(INDICES.ravel().tolist())
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return picture


@pytest.mark.parametrize("picture", [Image.fromarray(INDICES), as_palette(), Image.fromarray(INDICES.astype("<u2"))])
def test_indices_are_read_from_gray_and_palette_pngs(tmp_path, picture):
    path = write_pair(tmp_path, mask=picture)
    assert read_mask(str(path), [2, 255]).tolist() == [[0, 1, UNLABELED], [3, 0, 1]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_pngs_of_few_bits_hold_indices(tmp_path, bits):
    """Pillow stretches them to 0..255 when it reads them."""
    rows = np.array([[0, 1, 1], [1, 0, 1]]) if bits == 1 else INDICES
    packed = b""
    for row in rows:
        word = 0
        for value in row:
            word = word << bits | int(value)
        length = -(-3 * bits // 8)
        packed += b"\0" + (word << (8 * length - 3 * bits)).to_bytes(length, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 3, 2, bits, 0, 0, 0, 0)
    path = tmp_path / "mask.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    )
    assert read_mask(str(path), [255]).tolist() == rows.tolist()


def test_pixels_are_counted_by_class(tmp_path):
    for name in "ab":
        write_pair(tmp_path, name)
    found = find_masked_images(str(tmp_path), "train")
    assert count_pixels(found, [2], None).tolist() == [4, 4, 0, 2]
    assert count_pixels(found, [255], 5).tolist() == [4, 4, 2, 2, 0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colors_are_refused(tmp_path, mode):
    path = write_pair(tmp_path, mask=Image.new(mode, (3, 2)))
    with pytest.raises(DataError, match=rf"{path}.*{mode}.*indices"):
        read_mask(str(path), [255])


def test_sizes_and_indices_are_checked(tmp_path):
    path = write_pair(tmp_path, mask=Image.new("L", (4, 2)))
    with pytest.raises(DataError, match=rf"{path} has 4 x 2 .*3 x 2"):
        count_pixels(find_masked_images(str(tmp_path), "train"), [255], None)
    write_pair(tmp_path)
    with pytest.raises(DataError, match=rf"{path} has the index 3, .*3 classes, 0 to 2.*--classes.*--ignore_index"):
        count_pixels(find_masked_images(str(tmp_path), "train"), [255], 3)


def test_sizes_of_images_with_other_bands_are_checked(tmp_path):
    mask = write_pair(tmp_path)
    image = tmp_path / "images/train/a.jpg"
    image.unlink()
    np.save(image.with_suffix(".npy"), np.zeros((14, 15, 13), np.uint16))
    with pytest.raises(DataError, match=rf"{mask} has 3 x 2 pixels, .*a.npy has 15 x 14"):
        count_pixels(find_masked_images(str(tmp_path), "train"), [255], None, PixelFormat(13))


def test_missing_masks_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a folder.*images/train and masks/train"):
        find_masked_images(str(tmp_path / "nowhere"), "train")
    path = write_pair(tmp_path)
    with pytest.raises(DataError, match=r"no folder images with val"):
        find_masked_images(str(tmp_path), "val")
    path.rename(path.with_suffix(".bmp"))
    with pytest.raises(DataError, match=rf"{path} missing.*a\.bmp is no PNG"):
        find_masked_images(str(tmp_path), "train")


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_damaged_masks_are_named(tmp_path, content):
    path = write_pair(tmp_path)
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        count_pixels(find_masked_images(str(tmp_path), "train"), [255], None)


def test_a_truncated_mask_is_named(tmp_path):
    path = write_pair(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=str(path)):
        read_mask(str(path), [255])
