"""`plsc-mae split` divides labeled images by class into lists that every command reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.data.division import grouped_validation_rows
from plsc_mae.data.imagefolder import find_images, find_validation
from plsc_mae.data.listing import ImageList, PathTable

pytestmark = pytest.mark.compat


def draw_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, [40, 40, 3], np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of "cat", five of "big dog", one of "emu"."""
    for name, count in (("cat", 10), ("big dog", 5), ("emu", 1)):
        draw_images(tmp_path / "photos" / name, count)
    return tmp_path / "photos"


def split(*words: object) -> int:
    return main(["split", *map(str, words)])


def found(folder: Path):
    train = find_images(folder, "train")
    return train, find_validation(train, str(folder))


def test_every_image_is_in_one_list_and_every_class_in_both(photos, tmp_path, capsys):
    assert split(photos, tmp_path / "lists") == 0
    printed = capsys.readouterr()
    assert "      13       3  all" in printed.out
    assert f"next, to find unreadable ones: plsc-mae doctor --data_path {tmp_path / 'lists'}" in printed.out
    assert "classes without validation images, because they have a single image: emu" in printed.err
    train, val = found(tmp_path / "lists")
    assert train.classes == val.classes == ("big dog", "cat", "emu")
    assert Counter(train.labels.tolist()) == {0: 4, 1: 8, 2: 1}
    assert Counter(val.labels.tolist()) == {0: 1, 1: 2}
    paths = [Path(images.path(i)).resolve() for images in (train, val) for i in range(len(images))]
    assert sorted(paths) == sorted(photos.resolve().rglob("*.png"))
    assert all(
        images.classes[label] in images.paths[i] for images in (train, val) for i, label in enumerate(images.labels)
    )


def test_the_seed_decides(photos, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert split(photos, tmp_path / name, "--seed", seed, "--val_fraction", 0.5) == 0
    a, b, c = ((tmp_path / name / "val.txt").read_text() for name in "abc")
    assert a == b != c
    assert len(a.splitlines()) == len(c.splitlines()) == 7  # 5 of 10, 2 of 5


def test_a_run_takes_the_folder_and_predicts_the_list(photos, tmp_path, capsys):
    assert split(photos, tmp_path / "lists") == 0
    words = (
        f"finetune --model vit_base_patch16 --input_size 32 --patch_size 16 --embed_dim 16 --depth 1 --num_heads 2 "
        f"--data_path {tmp_path}/lists --output_dir {tmp_path}/run --batch_size 4 --epochs 1 --warmup_epochs 0 "
        "--num_workers 0 --device cpu --logger none"
    )
    assert main(words.split()) == 0
    checkpoint = tmp_path / "run/checkpoint-best.pd"
    table = tmp_path / "table.csv"
    line = f"predict --model_path {checkpoint} --img_path {tmp_path}/lists/val --save_path {table} --num_workers 0"
    assert main(line.split()) == 2
    assert f"lists/val does not exist, but {tmp_path}/lists/val.txt does; give --img_path" in capsys.readouterr().err
    assert main(line.replace("/val ", "/val.txt ").split()) == 0
    assert len({line.split(",")[0] for line in table.read_text().splitlines()[1:]}) == 3


def test_a_table_names_classes_of_images_elsewhere(photos, tmp_path, capsys):
    good, head = "合格", "类别"
    rows = [f"文件名,site,{head}"]
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        rows.append(f"{path.relative_to(photos)},{i % 2},{'' if i == 0 else good if i % 3 else 'NG'}")
    table = tmp_path / "labels.csv"
    table.write_bytes("\n".join(rows).encode("gbk"))
    assert split(table, tmp_path / "lists") == 2
    assert "--label_column" in capsys.readouterr().err
    column = ["--label_column", head]
    assert split(table, tmp_path / "lists", *column) == 2
    error = capsys.readouterr().err
    assert "row 3 names" in error
    assert "(15 such rows of 15); give the folder of the images by --image_path" in error
    assert split(table, tmp_path / "lists", *column, "--image_path", photos) == 0
    assert "1 of 16 rows have no class and are left out" in capsys.readouterr().err
    train, val = found(tmp_path / "lists")
    assert train.classes == ("NG", good)
    assert len(train) + len(val) == 15
    assert Counter(val.labels.tolist()) == {0: 1, 1: 2}


@pytest.fixture
def table(photos, tmp_path) -> Path:
    """Table of the cats with a class and an operator, in GBK."""
    rows = ["文件名,类别,操作员", *(f"cat/{i}.png,{'合格' if i % 2 else '裂纹'},张三" for i in range(10))]
    (photos / "labels.csv").write_bytes("\n".join(rows).encode("gbk"))
    return photos / "labels.csv"


def test_a_single_class_is_noticed(photos, table, tmp_path, capsys):
    assert split(table, tmp_path / "a", "--label_column", "操作员") == 0
    error = capsys.readouterr().err
    assert "all 10 images are of one class, '张三', so a classifier has nothing to learn; " in error
    assert f"{table} also has the columns '类别' for --label_column" in error
    assert split(table, tmp_path / "b", "--label_column", "类别") == 0
    assert "of one class" not in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("".join(f"{path} 3\n" for path in photos.rglob("cat/*.png")))
    assert split(tmp_path / "list.txt", tmp_path / "c") == 0
    assert "all 10 images are of one class, '3', so a classifier has nothing to learn\n" in capsys.readouterr().err


def test_reversed_columns_are_named(photos, tmp_path, capsys):
    (photos / "labels.csv").write_text("class,file\ngood,cat/0.png\nbad,cat/1.png\n")
    assert split(photos / "labels.csv", tmp_path / "lists") == 2
    error = capsys.readouterr().err
    assert "row 2 names good" in error
    assert "the column 'file' looks like the paths: put the paths first" in error


def test_a_run_names_the_command_for_a_table(table, tmp_path, capsys):
    words = ["pretrain", "--output_dir", str(tmp_path / "run"), "--data_path"]
    assert main([*words, str(table)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1  # no warning that contradicts the error
    command = f"plsc-mae split {table} DST --label_column NAME"
    assert f"{table} is a CSV file, not a list of images; `{command}` makes lists of it" in error
    assert main([*words, str(table.rename(table.with_name("my list.txt")))]) == 2
    renamed = f"'{table.with_name('my list.csv')}'"
    told = f"rename it to {renamed}, and `plsc-mae split {renamed} DST --label_column NAME`"
    assert told in capsys.readouterr().err


def test_groups_are_not_divided(photos, tmp_path, capsys):
    draw_images(tmp_path / "parts/good", 12)
    draw_images(tmp_path / "parts/bad", 12)
    for path in sorted((tmp_path / "parts").rglob("*.png")):  # four parts of each class, three views of each
        number = int(path.stem)
        path.rename(path.with_name(f"{path.parent.name}{number // 3}_{number % 3}.png"))
    draw_images(tmp_path / "parts/rare", 2)
    for path in sorted((tmp_path / "parts/rare").iterdir()):
        path.rename(path.with_name(f"only_{path.name}"))
    assert split(tmp_path / "parts", tmp_path / "lists", "--group_by", r"([^/]+)_\d+", "--val_fraction", 0.25) == 0
    printed = capsys.readouterr()
    assert "9 groups, such as 'bad0'" in printed.out
    assert "classes without validation images, because they share groups with others, or have one: rare" in printed.err
    train, val = (find_images(tmp_path / "lists", name) for name in ("train", "val"))
    sides = [{Path(path).name.partition("_")[0] for path in images.paths} for images in (train, val)]
    assert not sides[0] & sides[1]
    assert {name[:3] for name in sides[1]} == {"bad", "goo"}
    assert len(val) == 6


@pytest.fixture
def plates(tmp_path) -> Path:
    """Table of 30 images: class, and a plate of ten images for each third."""
    draw_images(tmp_path / "fields", 30)
    rows = ["file,kind,plate", *(f"{i}.png,{'sick' if i % 4 == 0 else 'well'},P{i // 10}" for i in range(30))]
    (tmp_path / "fields/table.csv").write_text("\n".join(rows))
    return tmp_path / "fields/table.csv"


def test_a_column_names_the_groups(plates, tmp_path, capsys):
    """The other column is that of the classes; the groups and a share far from that asked are told."""
    assert split(plates, tmp_path / "a", "--group_column", "plate") == 0
    printed = capsys.readouterr().out
    assert "--group_column plate: 3 groups, such as 'P0'" in printed
    _, val = found(tmp_path / "a")
    assert val.classes == ("sick", "well")
    (plate,) = {int(Path(path).stem) // 10 for path in val.paths}
    assert (
        f"\nval: P{plate}; 33.3 % of the images, as groups stay whole (--val_fraction 0.2 asks for 20 %)\n" in printed
    )
    assert (
        split(plates, tmp_path / "b", "--label_column", "kind", "--group_column", "plate", "--val_fraction", 0.3) == 0
    )
    assert f"\nval: P{plate}\n" in capsys.readouterr().out
    assert (tmp_path / "a/val.txt").read_text() == (tmp_path / "b/val.txt").read_text()


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ("--group_column dish", ["--group_column 'dish': TABLE has the columns 'kind', 'plate'"]),
        ("--group_column plate --label_column plate", ["--group_column plate is also the --label_column"]),
        ("--group_column plate --group_by x", ["--group_column and --group_by both choose the groups"]),
        ("--group_column run --label_column kind", ["gives 'A' for all 3 images", "name another column"]),
        (
            "--group_column site --label_column kind",
            ["row 3 has no value in the column --group_column site (1 such row"],
        ),
        ("--group_column kind", ["has the columns 'kind', 'plate'", "name that of the classes: --label_column"]),
        (
            "--group_by png --label_column kind",
            ["gives 'png' for all 3 images", "such as 'plate[0-9]+'", "--group_column"],
        ),
        ("--group_column kind --label_column plate", ["one group per class", "choose smaller groups"]),
    ],
)
def test_mistakes_in_groups(photos, capsys, words, sentences):
    table = photos / "table.csv"
    rows = ["file,kind,plate,run,site", "cat/0.png,a,P,A,x", "cat/1.png,b,Q,A,", "cat/2.png,b,Q,A,y"]
    if "run" not in words and "site" not in words:
        rows = [",".join(row.split(",")[:3]) for row in rows]
    if words == "--group_column kind":
        rows = [f"{row},{'day' if i == 0 else i}" for i, row in enumerate(rows)]
        sentences = ["has the columns 'kind', 'plate', 'day'", sentences[1]]
    table.write_text("\n".join(rows))
    assert split(table, photos.parent / "lists", *words.split()) == 2
    error = capsys.readouterr().err
    assert all(sentence.replace("TABLE", str(table)) in error for sentence in sentences)
    assert not (photos.parent / "lists").exists()


def test_the_choice_of_groups_comes_close_to_the_share():
    """Of five groups of 60 images a fifth is one, also if the first leaves its main class a few images short."""
    labels = np.random.default_rng(9).choice(3, 300, p=[0.6, 0.3, 0.1])
    images = ImageList(PathTable(map(str, range(300))), labels, ("a", "b", "c"), ".")
    groups = [str(i // 60) for i in range(300)]
    assert [len(grouped_validation_rows(images, groups, 0.2, seed)) for seed in range(9)] == [60] * 9


def test_numbers_stay_numbers(photos, tmp_path):
    paths = sorted(photos.rglob("cat/*.png"))
    (tmp_path / "all.txt").write_text("".join(f"{path} {i % 2 * 3}\n" for i, path in enumerate(paths)))
    assert split(tmp_path / "all.txt", tmp_path / "lists") == 0
    assert not (tmp_path / "lists/classes.txt").exists()
    train, val = found(tmp_path / "lists")
    assert Counter(train.labels.tolist()) == {0: 4, 3: 4}
    assert Counter(val.labels.tolist()) == {0: 1, 3: 1}


def test_lists_beside_images_are_no_split(photos):
    (photos / "train.txt").write_text("cat/nothing.png 0\n")
    assert len(find_images(photos, "train")) == 16


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("PHOTOS", "name the images and a new folder: plsc-mae split SRC DST"),
        ("PHOTOS PHOTOS/lists", "is in PHOTOS, where the images are"),
        ("PHOTOS OTHER", "has a file val.txt already; choose a new folder as DST"),
        ("PHOTOS/cat LISTS", "has no class folders; if it is one itself, `plsc-mae split PHOTOS LISTS`"),
        ("PHOTOS/cat LISTS", "`plsc-mae split LABELS.csv DST --image_path PHOTOS/cat` makes lists from a CSV file"),
        ("SPLIT LISTS", "has validation images already, so a run can use it as it is"),
        ("PHOTOS/emu.csv LISTS", "emu.csv"),
        ("PHOTOS LISTS --group_by x(", "is no regular expression"),
        ("PHOTOS LISTS --group_by dog", "does not match cat/0.png; give a regular expression for a part of every path"),
        ("PHOTOS LISTS --image_path PHOTOS", "--image_path is for a CSV file"),
        ("TWICE LISTS", "has images more than once, which would be on both sides; list each once"),
        ("ONLY LISTS", "has one image per class, so none is left for validation"),
    ],
)
def test_mistakes_write_nothing(photos, tmp_path, capsys, words, sentence):
    other = tmp_path / "other"
    other.mkdir()
    (other / "val.txt").write_text("mine")
    for part in ("train", "val"):
        draw_images(tmp_path / "split" / part / "a", 1)
    draw_images(tmp_path / "only/a", 1)
    places = {"PHOTOS": photos, "OTHER": other, "LISTS": tmp_path / "lists", "SPLIT": tmp_path / "split"}
    places |= {"ONLY": tmp_path / "only", "TWICE": tmp_path / "twice.txt"}
    places["TWICE"].write_text("photos/cat/0.png 0\nphotos/cat/1.png 1\nphotos/cat/0.png 0\n")
    for name, place in places.items():
        words, sentence = words.replace(name, str(place)), sentence.replace(name, str(place))
    assert split(*words.split()) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()
    assert (other / "val.txt").read_text() == "mine"
    assert [path.name for path in other.iterdir()] == ["val.txt"]


def test_runs_and_the_doctor_name_the_command(photos, tmp_path, capsys):
    assert main(["compare", "--data_path", str(photos), "--pixels", "8"]) == 2
    ways = f"set --eval_data_path to the validation images, or divide the images by `plsc-mae split {photos} DST`"
    assert f"{ways} and give DST" in capsys.readouterr().err
    assert main(["doctor", "--data_path", str(photos)]) == 0
    assert f"no validation images for `finetune`: {ways}" in capsys.readouterr().out
    assert split(photos, tmp_path / "lists") == 0
    assert main(["doctor", "--data_path", str(tmp_path / "lists")]) == 0
    printed = capsys.readouterr().out
    assert "train: 13 images in 3 classes" in printed
    assert "val: 3 images in" in printed


def test_only_a_folder_like_a_class_leads_to_the_folder_above(tmp_path, capsys):
    draw_images(tmp_path / "other" / "alone", 2)
    draw_images(tmp_path / "halves" / "train", 2)
    draw_images(tmp_path / "halves" / "val", 2)
    for folder in ("other/alone", "halves/train"):
        assert split(tmp_path / folder, tmp_path / "lists") == 2
        told = capsys.readouterr().err
        assert "LABELS.csv" in told
        assert str(tmp_path / "lists") not in told
