"""The doctor's checks of a data set: its layout, its classes and their order, and its files."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc_mae.analysis.class_counts import describe_imbalance
from plsc_mae.analysis.fonts import undrawable_names
from plsc_mae.commands.doctor_files import describe_range, examine_files, with_sampled_range
from plsc_mae.commands.doctor_findings import Finding, error, warning
from plsc_mae.commands.doctor_sizes import SQUARE
from plsc_mae.data.classes import Reference, class_warnings, label_warnings, match_images, sorted_as_text
from plsc_mae.data.depth import Extremes
from plsc_mae.data.folder_walk import is_hidden
from plsc_mae.data.imagefolder import class_forms, validation_remedy
from plsc_mae.data.listing import ImageList, describe_suffixes, has_split, list_images
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.wording import counted

_IMAGENET_CLASSES = 1000
_DEEPEST = 3
_NAMES_SHOWN = 3


class DataOptions(NamedTuple):
    """Options of the run that will read a data set.

    Attributes:
        data_path: the folder, list file or archive.
        eval_data_path: the same for the validation images; "" for those of `data_path`.
        pixel_format: format in which the run will read the images.
        samples_range: whether the run takes the range of `pixel_format` from sampled training images.
        input_size: see `describe_sizes`.
        patch_size: see `describe_sizes`.
    """

    data_path: str
    eval_data_path: str = ""
    pixel_format: PixelFormat = RGB
    samples_range: bool = False
    input_size: tuple[int, int] = SQUARE
    patch_size: int = 0


def examine_data(options: DataOptions) -> Iterator[str | Finding]:
    """Yield lines and findings about the training and validation images of a folder, a list file or archives."""
    try:
        yield from _examine_splits(options)
    except ConfigError as failure:  # a package that reads the files is not installed
        yield error(str(failure))


def _examine_splits(options: DataOptions) -> Iterator[str | Finding]:
    data_path = options.data_path
    nested = None if Path(data_path).is_file() else _folder_of_splits(Path(data_path))
    if nested is not None:
        yield error(f"--data_path {data_path}: train/ is in a folder below it: pass --data_path {nested}")
        return
    try:
        train = list_images(data_path, "train")
    except DataError as failure:
        yield error(str(failure))
        return
    if options.samples_range:
        options = options._replace(pixel_format=with_sampled_range(train, options.pixel_format))
    extremes = yield from _examine_split("train", train, options)
    if options.eval_data_path or has_split(data_path, "val"):
        extremes = yield from _examine_validation(train, options, extremes)
    elif train.classes:
        yield f"no validation images for `finetune`: {validation_remedy(data_path)}"
    else:
        yield f"no classes, which only classifiers need: {class_forms(train)}"
    if extremes is not None:
        yield from describe_range(extremes, options.pixel_format)


def _examine_validation(
    train: ImageList, options: DataOptions, extremes: Extremes | None
) -> Generator[str | Finding, None, Extremes | None]:
    """Examine the validation images, compare them with the training images, and return the extremes of both."""
    flag = "--eval_data_path" if options.eval_data_path else "--data_path"
    try:
        val = list_images(options.eval_data_path or options.data_path, "val", flag=flag)
    except DataError as failure:
        if options.eval_data_path:
            yield error(str(failure))
        else:
            yield warning(f"{failure}; pre-training needs no validation images")
        return extremes
    found = yield from _examine_split("val", val, options)
    yield from _compare(train, val)
    return found.joined(extremes) if found else extremes


def _folder_of_splits(folder: Path) -> Path | None:
    """Return a folder below `folder` that the user probably means, as it has train/; None if no folder fits better."""
    if any((folder / split).is_dir() for split in ("train", "val")):
        inner = folder / "train"
        return inner if (inner / "train").is_dir() and (inner / "val").is_dir() else None
    for depth in range(1, _DEEPEST + 1):
        for found in sorted(folder.glob("*/" * depth + "train")):
            if found.is_dir() and not any(map(is_hidden, found.relative_to(folder).parts)):
                return found.parent
    return None


def _examine_split(
    split: str, images: ImageList, options: DataOptions
) -> Generator[str | Finding, None, Extremes | None]:
    """Examine the images of a split and return the extremes of their values, see `examine_files`."""
    classes = counted(len(images.classes), "class") if images.classes else "no classes"
    yield f"{split}: {counted(len(images), 'image')} in {classes}, {images.source}"
    yield from _examine_left_out(images)
    yield from _examine_names(images)
    if images.classes:
        yield from _examine_classes(images)
        yield from map(warning, class_warnings(images) if split == "train" else label_warnings(images))
        if split == "train" and (unbalanced := describe_imbalance(np.bincount(images.labels))):
            yield f"  {unbalanced}"
        if split == "train" and (missing := undrawable_names(images.classes)):
            yield warning(missing)
    elif split == "val":
        yield warning(
            f"{images.root} has no class folders, so it cannot be used for evaluation: move every image to the folder "
            "of its class, named as in train/ (for ImageNet with the script valprep.sh)"
        )
    return (yield from examine_files(images, options.pixel_format, options.input_size, options.patch_size))


def _examine_left_out(images: ImageList) -> Iterator[str | Finding]:
    left_out = images.left_out
    if images.label_note:
        yield f"  {images.label_note}"
    if left_out.hidden.number:
        number, example = left_out.hidden
        yield f"  ignored {counted(number, 'hidden or system entry')}, such as {example}"
    if left_out.loose.number:
        number, example = left_out.loose
        yield warning(
            f"left out {counted(number, 'image')} of {images.root} beside the class folders, for example "
            f"{example}: move them into a class folder, or name all images in a list file"
        )
    pictures = left_out.pictures()
    if pictures:
        yield warning(
            f"{describe_suffixes(pictures)} in {images.root} are left out: convert them to PNG or JPEG, or name all "
            "images in a list file"
        )


def _examine_names(images: ImageList) -> Iterator[str]:
    escaped = [index for index in range(len(images)) if images.paths[index] != images.name(index)]
    if escaped:
        yield (
            f"  {counted(len(escaped), 'name')} with bytes that are not UTF-8 or cannot be shown; those are printed "
            f"and written as \\xNN: {images.name(escaped[0])}"
        )


def _examine_classes(images: ImageList) -> Iterator[str | Finding]:
    counts = np.bincount(images.labels, minlength=len(images.classes))
    numbered = [f"{index} {name}" for index, name in enumerate(images.classes)]
    shown = (
        numbered if len(numbered) <= 2 * _NAMES_SHOWN else [*numbered[:_NAMES_SHOWN], "...", *numbered[-_NAMES_SHOWN:]]
    )
    least, most = int(counts.min()), int(counts.max())
    sizes = counted(most, "image") if least == most else f"{least} to {most} images"
    yield f"  {', '.join(shown)}; {sizes} each"
    synsets = sum(re.fullmatch(r"n\d{8}", name) is not None for name in images.classes)
    if synsets == len(images.classes) == _IMAGENET_CLASSES:
        yield "  ImageNet-1k: classes are numbered as in torchvision and in published classifiers"
    elif synsets > _IMAGENET_CLASSES // 2:
        yield warning(
            f"{images.root} looks like ImageNet-1k but has {len(images.classes)} classes, {synsets} of them with names "
            f"like n01440764, not {_IMAGENET_CLASSES}: published classifiers number them differently"
        )
    wrong = sorted_as_text(images.classes)
    if wrong is not None:
        yield warning(
            f"the classes of {images.root} are numbers but are sorted as text, so folder {wrong} is class "
            f"{images.classes.index(wrong)}: pad the names with zeros if the numbers matter"
        )


def _compare(train: ImageList, val: ImageList) -> Iterator[str | Finding]:
    if not (train.classes and val.classes):
        return
    try:
        note = match_images(val, Reference(train.classes, train.source, "name the classes of both alike")).note
    except DataError as failure:
        yield error(str(failure))
        return
    if note:
        yield f"  {note}"
