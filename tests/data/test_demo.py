"""The demo data set is reproducible, resumable and balanced, and only shapes separate its classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.analysis.knn import knn_accuracy
from plsc_mae.data.demo import CLASSES, KINDS, SPLITS, draw_demo_image, draw_demo_mask, make_demo_data
from plsc_mae.data.demo_shapes import LUMA
from plsc_mae.errors import ConfigError, DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]

TRAIN, VAL, SIDE = 60, 20, 32  # 600 and 200 images
CHANCE = 100.0 / len(CLASSES)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demo"
    make_demo_data(root, image_size=SIDE, train_per_class=TRAIN, val_per_class=VAL)
    return root


def make_tiny(root: Path, **changes: int):
    return make_demo_data(root, **{"image_size": 16, "train_per_class": 2, "val_per_class": 1} | changes)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_class_has_the_same_number_of_images(demo):
    assert len(CLASSES) >= 8
    for split, count in zip(SPLITS, (TRAIN, VAL), strict=True):
        assert {folder.name: len(list(folder.iterdir())) for folder in (demo / split).iterdir()} == dict.fromkeys(
            CLASSES, count
        )


def test_images_are_rgb_jpegs_of_the_given_side(demo):
    for path in (demo / "val").rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE))


def test_no_picture_occurs_twice(demo):
    images = [data for name, data in contents(demo).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == len(CLASSES) * (TRAIN + VAL)


def test_same_seed_same_files_other_seed_other_pictures(tmp_path):
    make_tiny(tmp_path / "a")
    make_tiny(tmp_path / "b")
    make_tiny(tmp_path / "c", seed=1)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_a_picture_does_not_depend_on_how_many_there_are(tmp_path):
    make_tiny(tmp_path / "few")
    make_tiny(tmp_path / "many", train_per_class=3)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert all(many[name] == data for name, data in few.items() if name.endswith(".jpg"))


def test_a_file_holds_the_picture_drawn_alone(demo):
    alone = np.asarray(draw_demo_image("val", "heart", 7, image_size=SIDE), np.float64)
    with Image.open(demo / "val" / "heart" / "00007.jpg") as image:
        error = np.abs(np.asarray(image, np.float64) - alone).mean()
    assert error < 4.0  # of 255: JPEG costs about 2, the most similar other picture is 32 away


def test_second_call_does_nothing(tmp_path):
    assert make_tiny(tmp_path / "demo").created
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*")}
    again = make_tiny(tmp_path / "demo")
    assert not again.created
    assert (again.num_train, again.num_val) == (2 * len(CLASSES), len(CLASSES))
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*")}


def test_interrupted_run_is_completed_by_the_next(tmp_path, monkeypatch):
    make_tiny(tmp_path / "whole")
    root, save, saved = tmp_path / "interrupted", Image.Image.save, []

    def save_half_of_the_eleventh(image, path, **options):
        saved.append(path)
        if len(saved) == 11:
            path.write_bytes(b"half a picture")
            raise KeyboardInterrupt
        save(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_half_of_the_eleventh)
        with pytest.raises(KeyboardInterrupt):
            make_tiny(root)
    assert len(list(root.rglob("*.jpg"))) == 10  # the half-written one never got its name
    assert not (root / "demo.json").exists()
    with pytest.raises(DataError, match="other parameters"):
        make_tiny(root, seed=5)
    assert make_tiny(root).created
    assert contents(root) == contents(tmp_path / "whole")


def test_an_empty_folder_is_welcome(tmp_path):
    assert make_tiny(tmp_path).created
    assert json.loads((tmp_path / "demo.json").read_text())["image_size"] == 16


def test_folders_with_other_contents_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not empty"):
        make_tiny(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        make_tiny(tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_demo_data_with_other_parameters_is_refused_and_left_alone(tmp_path):
    make_tiny(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"other parameters.*\"seed\": 0"):
        make_tiny(tmp_path, seed=1)
    assert contents(tmp_path) == before
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        make_tiny(tmp_path)


@pytest.mark.parametrize("wrong", [{"image_size": 8}, {"train_per_class": 0}, {"val_per_class": -1}, {"seed": -1}])
def test_impossible_parameters_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} .* at least"):
        make_tiny(tmp_path / "demo", **wrong)
    assert not (tmp_path / "demo").exists()


def test_folder_that_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{tmp_path}/file/demo"):
        make_tiny(tmp_path / "file" / "demo")


def test_raw_pixels_are_above_chance_and_poor(demo):
    # Chance is 10 % with a standard deviation of 2.1 % over 200 images.
    (train, labels), (val, expected) = pixels(demo / "train"), pixels(demo / "val")
    mean = train.mean(axis=0)
    (accuracy,) = knn_accuracy(train - mean, labels, val - mean, expected, (10,))
    assert CHANCE + 4.0 < accuracy.top1 < 40.0


def pixels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images as rows [N, S*S*3] and their classes [N]."""
    paths = sorted(folder.glob("*/*.jpg"))
    rows = np.stack([np.asarray(Image.open(path), np.float32).ravel() for path in paths])
    return rows, np.array([CLASSES.index(path.parent.name) for path in paths])


def test_average_color_classifies_poorly(demo):
    (train, labels), (val, expected) = (
        (rows.reshape(len(rows), -1, 3).mean(axis=1), classes)
        for rows, classes in (pixels(demo / split) for split in ("train", "val"))
    )
    nearest = np.linalg.norm(val[:, None] - train, axis=-1).argsort(axis=1)[:, :10]
    predicted = np.eye(len(CLASSES))[labels[nearest]].sum(axis=1).argmax(axis=1)
    accuracy = 100.0 * np.mean(predicted == expected)
    assert accuracy < CHANCE + 20.0  # measured 22 %: the area differs a little from shape to shape


def test_shape_and_background_contrast_in_every_picture(demo):
    for path in (demo / "val").rglob("*.jpg"):
        with Image.open(path) as image:
            low, high = np.percentile(np.asarray(image.convert("L")), [5, 95])
        assert high - low > 80.0, path  # drawn 120 apart; clipping of colors reduces it


def test_masks_belong_to_the_same_pictures(tmp_path):
    make_tiny(tmp_path / "plain")
    make_tiny(tmp_path / "masked", masks=True)
    plain, masked = contents(tmp_path / "plain"), contents(tmp_path / "masked")
    pictures = {name: data for name, data in plain.items() if name.endswith(".jpg")}
    assert {name.removeprefix("images/"): data for name, data in masked.items() if name.endswith(".jpg")} == pictures
    assert {name for name in masked if name.startswith("masks/")} == {
        f"masks/{name.removesuffix('.jpg')}.png" for name in pictures
    }
    assert masked["classes.txt"].decode().split() == ["background", *CLASSES]
    make_tiny(tmp_path / "again", masks=True)
    assert contents(tmp_path / "again") == masked
    (tmp_path / "masked/demo.json").rename(tmp_path / "masked/demo.json.partial")
    (tmp_path / "masked/masks/val/heart/00000.png").unlink()
    assert make_tiny(tmp_path / "masked", masks=True).created
    assert contents(tmp_path / "masked") == masked
    with pytest.raises(DataError, match="other parameters"):
        make_tiny(tmp_path / "plain", masks=True)


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_mask_covers_the_shape(class_name):
    """Brightness is constant within the shape and outside, up to noise and the mixed pixels of edges."""
    luma = np.asarray(draw_demo_image("val", class_name, 3, image_size=64)) @ LUMA
    mask = np.asarray(draw_demo_mask("val", class_name, 3, image_size=64))
    assert set(np.unique(mask).tolist()) == {0, 1 + CLASSES.index(class_name)}
    inside, outside = luma[mask > 0], luma[mask == 0]
    assert abs(np.median(inside) - np.median(outside)) > 100
    nearer = abs(luma - np.median(inside)) < abs(luma - np.median(outside))
    assert (nearer == (mask > 0)).mean() > 0.97


def test_a_folder_of_objects_remembers_its_kind(tmp_path):
    make_tiny(tmp_path / "objects", kind="objects", masks=True)
    assert json.loads((tmp_path / "objects/demo.json").read_text())["kind"] == "objects"
    classes = KINDS["objects"].classes
    assert {folder.name for folder in (tmp_path / "objects/images/train").iterdir()} == set(classes)
    assert (tmp_path / "objects/classes.txt").read_text().split() == ["background", *classes]
    assert not make_tiny(tmp_path / "objects", kind="objects", masks=True).created
    with pytest.raises(DataError, match="other parameters"):
        make_tiny(tmp_path / "objects", masks=True)
    make_tiny(tmp_path / "shapes")  # as before there were kinds
    assert "kind" not in json.loads((tmp_path / "shapes/demo.json").read_text())
    with pytest.raises(ConfigError, match="one of shapes, objects, got photos"):
        make_tiny(tmp_path / "photos", kind="photos")


@pytest.mark.parametrize("class_name", KINDS["objects"].classes)
def test_an_object_differs_from_the_empty_scene_where_its_mask_is(class_name):
    """Wall and ground have few colors, so that an object's pixels are far from the median of their row outside."""
    picture = np.asarray(draw_demo_image("val", class_name, 3, kind="objects"), np.float64)
    mask = np.asarray(draw_demo_mask("val", class_name, 3, kind="objects"))
    assert set(np.unique(mask).tolist()) == {0, 1 + KINDS["objects"].classes.index(class_name)}
    assert 0.15 < (mask > 0).mean() < 0.6
    distances = np.zeros(mask.shape)
    for row, covered, distance in zip(picture, mask > 0, distances, strict=True):
        distance[:] = np.abs(row - np.median(row[~covered], axis=0)).sum(axis=1)
    assert np.median(distances[mask > 0]) > 3 * np.median(distances[mask == 0])
