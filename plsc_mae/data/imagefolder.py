"""Image data sets on disk.

`find_images` lists the files of a folder or list file, `find_validation` lists the matching validation images,
`balanced_subset` selects some of the files, and `ImageDataset` decodes and transforms them.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.data.classes import Reference, listed, match_images
from plsc_mae.data.file_dataset import FileDataset
from plsc_mae.data.listing import ImageList, PathTable, describe_suffixes, has_split, list_images
from plsc_mae.data.seeding import SampleKey, sample_rng, stand_in_offsets
from plsc_mae.data.tiles import random_tile
from plsc_mae.data.transfer import HOST_PREFIX, INDEX
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.data.unreadable import NAMED_FILES
from plsc_mae.errors import DataError
from plsc_mae.errors import flag as own_flag
from plsc_mae.wording import counted

__all__ = ["GivenImages", "ImageDataset", "ImageList", "PathTable", "balanced_subset", "find_images", "find_validation"]

_IMAGE_FOLDERS = {"image", "images", "img", "imgs", "jpegimages", "photos", "pictures"}
_ANNOTATION_FOLDERS = {
    *("label", "labels", "mask", "masks", "annotation", "annotations", "gt", "groundtruth", "ground_truth"),
    *("segmentation", "segmentationclass", "seg", "target", "targets"),
}
_MAX_STAND_INS = 100  # files that are tried in place of one bad file

logger = logging.getLogger(__name__)


def find_images(data_path: str | Path, split: str, *, flag: str = "", known_note: str = "") -> ImageList:
    """List the images of a data set, in an order that does not depend on the file system, and log the files left out.

    `data_path` may be:
    - a text file with a `path [label]` per line, with paths relative to the file;
    - a folder with a sub-folder `split`, which is then used in place of `data_path`;
    - a folder with one sub-folder of images per class;
    - a folder of unlabeled images;
    - a tar, zip, Parquet or Arrow file, a folder of such files, a pattern such as 'shards/*.tar', or a folder in a tar
      or zip file, such as 'data.zip/images'; folders in archives are treated as those above;
    - the folder or a file of the binary version of CIFAR or STL-10.
    In folders, classes are numbered and files are selected as in torchvision's ImageFolder, except that hidden and
    system files and folders are ignored (`plsc_mae.data.folder_walk.is_hidden`), and that .npy and .npz files are read
    from folders without other images.

    Args:
        data_path: folder, list file, archive or pattern.
        split: name of the wanted sub-folder or archives.
        flag: option that `data_path` comes from, for messages; "" for the --data_path or --img_path of the command.
        known_note: note on the labels of other images that the log has already.

    Raises:
        DataError: `data_path` cannot be read, has no images, is ambiguous, or has none of these forms.
        ConfigError: the package that reads the archives cannot be imported.
    """
    flag = flag or own_flag("data_path", "img_path")
    images = list_images(data_path, split, flag=flag)
    _refuse_annotations(images, flag)
    log_left_out(images, known_note=known_note)
    return images


def _refuse_annotations(images: ImageList, flag: str) -> None:
    """Raise DataError if there are only two classes, named like a folder of images and one of annotations."""
    if images.list_file:
        return
    names = [name for name in images.classes if name.lower() in _IMAGE_FOLDERS]
    others = [name for name in images.classes if name.lower() in _ANNOTATION_FOLDERS]
    if len(images.classes) == 2 and names and others:
        raise DataError(
            f"{images.root} has the folders {names[0]} and {others[0]}, which would be two classes; for images without "
            f"labels give {flag} {Path(images.root) / names[0]}; for classes make one folder per class"
        )


def log_left_out(
    images: ImageList, *, alternative: str = "name all images in a list file", known_note: str = ""
) -> None:
    """Log the note on the labels, and the numbers of hidden files, loose images and other images that are left out.

    Args:
        images: the list.
        alternative: way to use the files without moving or converting them, for the messages.
        known_note: note on the labels of other images that the log has already.
    """
    left_out = images.left_out
    if images.label_note not in ("", known_note):
        logger.info("%s: %s", images.source, images.label_note)
    if left_out.hidden.number:
        number, example = left_out.hidden
        logger.info("%s: ignored %d hidden or system files and folders, such as %s", images.root, number, example)
    if left_out.loose.number:
        number, example = left_out.loose
        logger.warning(
            "%s: left out %s beside the class folders, such as %s; move them into a class folder, or %s",
            *(images.root, counted(number, "image"), example, alternative),
        )
    pictures = left_out.pictures()
    if pictures:
        described = describe_suffixes(pictures)
        logger.warning("%s: left out %s; convert them to PNG or JPEG, or %s", images.root, described, alternative)


def require_classes(images: ImageList, use: str) -> None:
    """Raise DataError if the images are unlabeled; `use` names the purpose of the labels in the message."""
    if not images.classes:
        note = f": {images.label_note}" if images.label_note else ""
        raise DataError(
            f"the images of {images.source} have no classes, which are needed for {use}{note}; {class_forms(images)}"
        )


def class_forms(images: ImageList) -> str:
    """Return the clause "expected ..." about the forms in which unlabeled images can have classes."""
    packed = "KEY.cls beside KEY.jpg, a column of class names or numbers, " if images.archives else ""
    forms = f"expected a folder per class, {packed}or a list file with labels"
    if images.archives or images.list_file:
        return forms
    command = f"plsc-mae split LABELS.csv DST --image_path {shlex.quote(images.root)}"
    return f"{forms}; `{command}` makes lists from a CSV file of paths and classes"


class GivenImages(NamedTuple):
    """Images given by the caller; None for a set that is listed from --data_path or --eval_data_path."""

    train: ImageList | None = None
    val: ImageList | None = None


def find_validation(
    train: ImageList, data_path: str, eval_data_path: str = "", *, given: ImageList | None = None
) -> ImageList:
    """List the validation images that belong to training images, labeled with the classes of the training images.

    Classes are matched by name, see `plsc_mae.data.classes`. Some classes may have no validation images; the log
    reports them.

    Args:
        train: the training images.
        data_path: path of the training images, see `find_images`.
        eval_data_path: path whose split "val" is listed, or all of it if it has no splits; by default `data_path`,
            which must have "train" and "val".
        given: the validation images, if the caller has them already; None lists them.

    Raises:
        DataError: the validation images cannot be listed, one of the two sets is unlabeled, or a class of the
            validation images has no match among those of the training images.
        ConfigError: see `find_images`.
    """
    val = given
    if val is None:
        if not eval_data_path:
            _require_splits(data_path)
        flag = "--eval_data_path" if eval_data_path else "--data_path"
        val = find_images(eval_data_path or data_path, "val", flag=flag, known_note=train.label_note)
    for images in (train, val):
        require_classes(images, "validation")
    remedy = "name the classes of both alike, or set --eval_data_path to other validation images"
    labels, note = match_images(val, Reference(train.classes, train.source, remedy))
    if note:
        logger.info("%s", note)
    if untrained := sorted(set(labels.tolist()) - set(train.labels.tolist())):
        names = [train.classes[number] for number in untrained]
        logger.warning("%s has images of classes without training images: %s", val.source, listed(names))
    return replace(val, labels=labels, classes=train.classes)


def _require_splits(data_path: str) -> None:
    if not (has_split(data_path, "train") and has_split(data_path, "val")):
        missing = _missing_split(Path(data_path))
        raise DataError(f"{data_path} has {missing}; {validation_remedy(data_path)}")


def validation_list_beside(data_path: str) -> str:
    """Return the path of val.txt beside another list file; "" without one."""
    source = Path(data_path)
    beside = source.with_name("val.txt")
    return str(beside) if source.is_file() and beside.is_file() and not beside.samefile(source) else ""


def validation_remedy(data_path: str) -> str:
    """Return the clause about the ways to give validation images for the training images of `data_path`."""
    if beside := validation_list_beside(data_path):
        return f"give --eval_data_path {shlex.quote(beside)}"
    return (
        "set --eval_data_path to the validation images, or divide the images by "
        f"`plsc-mae split {shlex.quote(data_path)} DST` and give DST"
    )


def balanced_subset(images: ImageList, limit: int) -> ImageList:
    """Select at most `limit` images, balanced over the classes.

    If there are no more than `limit`, all are selected. Otherwise each class contributes `limit // len(classes)`
    images, evenly spaced in list order, or all of its images if it has fewer. Of unlabeled images, or if there are more
    classes than `limit`, `limit` evenly spaced images are selected.
    """
    if len(images) <= limit:
        return images
    balances = 0 < len(images.classes) <= limit
    return subset(images, _balanced(images, limit) if balances else np.arange(limit) * len(images) // limit)


def _balanced(images: ImageList, limit: int) -> npt.NDArray[np.int64]:
    """Return the indices of the images that `balanced_subset` selects."""
    ends = np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))
    members = np.split(np.argsort(images.labels, kind="stable"), ends[:-1])
    counts = [min(len(rows), limit // len(images.classes)) for rows in members]
    spaced = [rows[np.arange(count) * len(rows) // max(count, 1)] for rows, count in zip(members, counts, strict=True)]
    return np.concatenate(spaced)


def subset(images: ImageList, rows: npt.NDArray[np.int64]) -> ImageList:
    """Return the list of the images at indices `rows` [m], in this order."""
    paths = PathTable(images.paths[int(row)] for row in rows)
    return replace(images, paths=paths, labels=images.labels[rows])


class ImageDataset(FileDataset):
    """Data set of transformed images.

    A sample is the transform's arrays plus `INDEX`, "label" and "skipped". With `bad_image="skip"`, a file that cannot
    be decoded is replaced by another file of the list, its stand-in. The sample then has the label and the `INDEX` of
    the stand-in, but the random numbers of the bad file, and "skipped" is 1 instead of 0. The stand-in depends on seed,
    epoch, index and the bad files alone, and different bad files get different stand-ins as far as possible
    (`seeding.stand_in_offsets`). A process and its workers log up to 20 bad files, each once.

    With `PixelFormat.tile`, a sample is taken from a random tile of the file; its position is drawn before all else.

    Args:
        images: files and labels.
        transform: maps a SourceImage and the sample's generator to named arrays.
        labels_on_device: if False, labels are named "host_label" and stay on the host, because no kernel reads them.
        reading: further arguments of `FileDataset`.
    """

    def __init__(
        self, images: ImageList, transform: Transform, *, labels_on_device: bool = True, **reading: Any
    ) -> None:
        super().__init__(images, transform, **reading)
        self._label = "label" if labels_on_device else HOST_PREFIX + "label"

    def __getitem__(self, key: SampleKey) -> Sample:
        index = key.index
        sample = self._read(index, key)
        if isinstance(sample, DataError):
            reason = sample
            offsets = stand_in_offsets(self.seed, key.epoch, len(self), _MAX_STAND_INS)
            for index in ((key.index + offset) % len(self) for offset in offsets):
                sample = self._read(index, key)
                if not isinstance(sample, DataError):
                    break
            else:
                number = counted(1 + len(offsets), "file")
                raise DataError(f"cannot decode any of {number} of {self.images.source}; the first: {reason}")
        numbers = {INDEX: index, "skipped": index != key.index}
        return {
            **sample,
            **{name: np.asarray(number, np.int64) for name, number in numbers.items()},
            self._label: np.asarray(self.images.labels[index]),
        }

    def _read(self, index: int, key: SampleKey) -> Sample | DataError:
        """Return the sample of `key` from file `index`, or why the file cannot be decoded if it may be skipped."""
        try:
            rng = sample_rng(self.seed, *key)
            return self.transform(random_tile(self._open(index), self.pixel_format.tile, rng), rng)
        except DataError as error:
            self._require_skipping(error)
            self._warn_once(index, str(error))
            return error

    def _warn_once(self, index: int, reason: str) -> None:
        unreadable = self.images.unreadable
        if not unreadable.add(index) or unreadable.count > NAMED_FILES:
            return
        last = "; further unreadable files are counted but not named" if unreadable.count == NAMED_FILES else ""
        logger.warning("%s; using another image instead%s", reason, last)

    def _count_bad(self, index: int) -> None:
        self.images.unreadable.add(index)


def _missing_split(source: Path) -> str:
    """Return the end of a sentence about a folder without train/ or val/, naming a folder like val/ if there is one."""
    if source.is_file():
        return "no validation images"
    if not (source / "train").is_dir():
        return "val/ but no train/" if (source / "val").is_dir() else "no folders train/ and val/"
    others = [f"{name}/" for name in ("validation", "valid", "test", "eval") if (source / name).is_dir()]
    return f"train/ but no val/{f' (but {others[0]})' if others else ''}"
