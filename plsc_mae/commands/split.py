"""`plsc-mae split`: divides labeled images into training and validation images, as list files beside each other."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from plsc_mae.config.data_sets import SplitConfig
from plsc_mae.data.division import grouped_validation_rows, groups_of, validation_rows
from plsc_mae.data.few_labels import Rows
from plsc_mae.data.folder_walk import LeftOut, scan
from plsc_mae.data.imagefolder import class_forms, find_images, require_classes
from plsc_mae.data.label_table import read_class_table
from plsc_mae.data.list_file import CLASSES_FILE
from plsc_mae.data.listing import ImageList, has_direct_images, has_split, is_like_split
from plsc_mae.errors import DataError
from plsc_mae.files import atomic_replacement
from plsc_mae.names import restore_name
from plsc_mae.wording import counted

TRAIN, VAL = "train", "val"
SHOWN_CLASSES = 20
_SHOWN_GROUPS = 10
_FAR = 0.2  # difference from the share that was asked, divided by it

logger = logging.getLogger(__name__)


def run(config: SplitConfig) -> None:
    """Choose validation images of every class at random and write both lists; no image is moved or copied.

    A class with a single image, or a single group, is for training only.

    Raises:
        DataError: the images cannot be listed or have no classes, an image is listed twice, the source has validation
            images already, a path cannot be in a list, or DST holds a list, is in the source, or cannot be written.
        ConfigError: a package that reads the images is not installed.
    """
    folder = _target(config)
    images, groups = _find(config)
    require_classes(images, "a division by class")
    if len(set(images.paths)) < len(images):
        raise DataError(f"{images.source} has images more than once, which would be on both sides; list each once")
    _warn_of_one_class(images)
    if config.group_by:
        groups = groups_of(images, config.group_by)
    val = _choose(images, groups, config)
    train = np.setdiff1d(np.arange(len(images)), val)
    try:
        if not images.labels_are_numbers:
            _write(folder / CLASSES_FILE, map(restore_name, images.classes))
        for name, rows in ((VAL, val), (TRAIN, train)):  # a folder with train.txt is complete
            _write(folder / f"{name}.txt", _lines(images, rows, folder))
    except OSError as error:
        raise DataError(f"cannot write to {config.dst}: {error.strerror}; choose a writable folder") from None
    print(_summary(images, train, val))
    if groups:
        print(_describe_groups(groups, val, config))
    lists = shlex.quote(config.dst)
    print(f"{lists} is complete, and no image was moved or opened")
    print(f"next, to find unreadable ones: plsc-mae doctor --data_path {lists}")


def _target(config: SplitConfig) -> Path:
    """Return DST without links; raise DataError if it is in the source or holds a list already."""
    source, target = Path(os.path.realpath(config.src)), Path(os.path.realpath(config.dst))
    if source.is_dir() and target.is_relative_to(source):
        raise DataError(f"DST {config.dst} is in {config.src}, where the images are; choose a folder elsewhere")
    for name in (f"{TRAIN}.txt", f"{VAL}.txt", CLASSES_FILE):
        if os.path.lexists(target / name):
            raise DataError(f"{config.dst} has a file {name} already; choose a new folder as DST")
    return target


def _find(config: SplitConfig) -> tuple[ImageList, Sequence[str]]:
    """Return the images, and the group of each if a column names it."""
    if config.is_table:
        folder = Path(config.image_path or Path(config.src).parent)
        return read_class_table(Path(config.src), folder, config.label_column, config.group_column)
    if has_split(config.src, VAL):
        raise DataError(f"{config.src} has validation images already, so a run can use it as it is")
    images = find_images(config.src, TRAIN, flag="SRC")
    if not images.classes and _beside_others_with_images(Path(os.path.abspath(config.src))):
        above = shlex.quote(os.path.normpath(os.path.join(config.src, "..")))
        raise DataError(
            f"{config.src} has no class folders; if it is one itself, `plsc-mae split {above} "
            f"{shlex.quote(config.dst)}` divides it and those beside it; otherwise {class_forms(images)}"
        )
    return images, ()


def _beside_others_with_images(folder: Path) -> bool:
    """Return whether a folder and others beside it have images and no names of splits, as folders of classes do."""
    with contextlib.suppress(OSError):
        names = scan(folder.parent, LeftOut())[0]
        alike = [name for name in names if not is_like_split(name) and has_direct_images(folder.parent / name)]
        return folder.name in alike and len(alike) > 1
    return False


def _warn_of_one_class(images: ImageList) -> None:
    if len(present := np.unique(images.labels)) == 1:
        logger.warning(
            "all %s are of one class, '%s', so a classifier has nothing to learn%s",
            *(counted(len(images), "image"), images.classes[present[0]]),
            f"; {images.label_note}" if images.label_note else "",
        )


def _choose(images: ImageList, groups: Sequence[str], config: SplitConfig) -> Rows:
    """Return the sorted indices of the validation images, or raise DataError without any."""
    if groups:
        _require_several(groups, config)
        val = grouped_validation_rows(images, groups, config.val_fraction, config.seed)
    else:
        val = validation_rows(images, config.val_fraction, config.seed)
    if not len(val):
        unit, remedy = ("group", "choose smaller groups") if groups else ("image", "add images")
        raise DataError(f"{images.source} has one {unit} per class, so none is left for validation; {remedy}")
    unseen = sorted(set(images.labels.tolist()) - set(images.labels[val].tolist()))
    if unseen:
        reason = "they share groups with others, or have one" if groups else "they have a single image"
        names = ", ".join(images.classes[number] for number in unseen)
        logger.warning("classes without validation images, because %s: %s", reason, names)
    return val


def _require_several(groups: Sequence[str], config: SplitConfig) -> None:
    """Raise DataError if all images are in one group; log the number of groups."""
    chosen = f"--group_by {config.group_by}" if config.group_by else f"--group_column {config.group_column}"
    if (count := len(set(groups))) > 1:
        logger.info("%s: %s, such as '%s'", chosen, counted(count, "group"), groups[0])
        return
    found = f"{chosen} gives '{groups[0]}' for all {counted(len(groups), 'image')}, so they are one group"
    remedy = "give a pattern for what differs between objects, such as 'plate[0-9]+'" if config.group_by else ""
    column = "name another column by --group_column" if config.is_table else ""
    raise DataError(f"{found}; {', or '.join(filter(None, (remedy, column)))}")


def _describe_groups(groups: Sequence[str], val: Rows, config: SplitConfig) -> str:
    """Return a line with the groups for validation, and their share of the images if it is far from that asked."""
    held = sorted({groups[row] for row in val.tolist()})
    names = ", ".join(held) if len(held) <= _SHOWN_GROUPS else f"{len(held)} of {len(set(groups))} groups"
    share = len(val) / len(groups)
    if abs(share / config.val_fraction - 1) <= _FAR:
        return f"{VAL}: {names}"
    asked = f"--val_fraction {config.val_fraction:g} asks for {100 * config.val_fraction:.3g} %"
    return f"{VAL}: {names}; {100 * share:.3g} % of the images, as groups stay whole ({asked})"


def _lines(images: ImageList, rows: Rows, folder: Path) -> Iterable[str]:
    """Yield "path label" for the images at indices `rows`, with paths relative to `folder`."""
    for row in rows.tolist():
        path = os.path.relpath(os.path.abspath(images.path(row)), folder)
        if "\n" in path or "\r" in path:
            raise DataError(f"{images.name(row)}: a path with a line break cannot be in a list; rename the file")
        yield f"{path} {images.labels[row]}"


def _write(file: Path, lines: Iterable[str]) -> None:
    with atomic_replacement(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _summary(images: ImageList, train: Rows, val: Rows) -> str:
    """Return a table of the numbers of images by class."""
    count = len(images.classes)
    by_class = [np.bincount(images.labels[rows], minlength=count).tolist() for rows in (train, val)]
    rows = [("class", TRAIN, VAL), *zip(images.classes, *by_class, strict=True)]
    lines = [f"{kept:>8}{held:>8}  {name}" for name, kept, held in rows[: SHOWN_CLASSES + 1]]
    if count > SHOWN_CLASSES:
        lines.append(f"{'...':>16}  and {counted(count - SHOWN_CLASSES, 'more class')}")
    lines.append(f"{len(train):>8}{len(val):>8}  all")
    return "\n".join(lines)
