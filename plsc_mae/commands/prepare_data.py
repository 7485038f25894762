"""`plsc-mae prepare-data`: packs images into tar shards and can resize large ones first."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from tqdm import tqdm

from plsc_mae import console
from plsc_mae.config.data_sets import QUALITY, PrepareDataConfig
from plsc_mae.data.folder_walk import is_hidden, is_image
from plsc_mae.data.imagefolder import log_left_out
from plsc_mae.data.list_file import CLASSES_FILE
from plsc_mae.data.listing import ImageList, has_split, list_images
from plsc_mae.data.packed.encode import EncodedFile, Resize, encode_files
from plsc_mae.data.packed.index import read_index
from plsc_mae.data.packed.shards import PackRecord, ShardWriter
from plsc_mae.errors import DataError, remedies
from plsc_mae.files import atomic_replacement, refuse_foreign, result_replacement
from plsc_mae.folder_lock import locked
from plsc_mae.names import restore_name
from plsc_mae.runtime import count_workers
from plsc_mae.wording import counted

_SPLITS = ("train", "val", "test")
_DEFAULT_SUFFIX, _JPEG_SUFFIXES = ".jpg", (".jpg", ".jpeg")
_UNNAMED = "images"  # prefix of the shards of a data set without splits

logger = logging.getLogger(__name__)


def run(config: PrepareDataConfig) -> None:
    """Pack each split of the source or, if it has none, the whole source into a folder of shards.

    Raises:
        DataError: the images cannot be listed or read, or the folder cannot be written, is in the source, or holds
            other files.
        FolderError: another process packs into the folder.
        ConfigError: a package that reads the images is not installed.
    """
    source, target = os.path.realpath(config.src), os.path.realpath(config.dst)
    if os.path.isdir(source) and os.path.commonpath([source, target]) == source:
        raise DataError(f"DST {config.dst} is in {config.src}, where the images are; choose a folder elsewhere")
    for split in [split for split in _SPLITS if has_split(config.src, split)] or [""]:
        images = list_images(config.src, split or "train", flag="SRC")
        log_left_out(images)
        try:
            _pack_split(config, images, split)
        except OSError as error:
            raise DataError(f"cannot write to {config.dst}: {error.strerror}; choose a writable folder") from None


def _pack_split(config: PrepareDataConfig, images: ImageList, split: str) -> None:
    """Pack the images of a split, unless they are packed already, and print a summary.

    If the classes are numbers, also write a list file with the labels, and copy classes.txt if the source has it.
    """
    root, names = Path(config.dst), None
    folder, prefix = root / split, split or _UNNAMED
    if images.numbers_are_named:
        images, names = images.with_numbers(), Path(images.root) / CLASSES_FILE
    if images.numbered:
        _refuse_files_of_user(root, prefix, names)
    resize = None if config.short is None else Resize(config.short, config.quality or QUALITY)
    options = {
        "images": len(images),
        "digest": _digest(images),
        "short": config.short,
        "quality": None if resize is None else resize.quality,
        "shards": config.shard_bytes,
    }
    record = PackRecord.open(folder, options)
    if not record.finished:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "DST"):
            record = PackRecord.open(folder, options)  # another process may have packed before this one got the lock
            _pack(config, images, record, folder, resize)
    _print_summary(images, folder, record)
    if images.numbered and images.classes:
        print(_write_list(root, folder, record, images))
        if names is not None:
            _copy(names, root / CLASSES_FILE)


def _pack(
    config: PrepareDataConfig, images: ImageList, record: PackRecord, folder: Path, resize: Resize | None
) -> None:
    """Write the shards that the record does not have yet."""
    prefix = _prefix(folder, Path(config.dst))
    if record.end:
        logger.info("%s: continuing after %d of %d images", folder, record.end, len(images))
    writer = ShardWriter(folder, prefix, config.shard_bytes, record)
    hidden, resized = not console.shows_bars(), 0
    with (
        tqdm(total=len(images), initial=record.end, desc=prefix, unit="image", disable=hidden) as bar,
        contextlib.closing(encode_files(images, record.end, resize, count_workers(config.num_workers))) as files,
    ):
        for number, file in enumerate(files, start=record.end):
            _add(writer, images, number, file, config)
            resized += file.is_resized
            bar.update()
    writer.finish()
    if not record.shards:
        raise DataError(f"no image of {images.source} can be read; repair or replace the files")
    if resize is not None:
        logger.info(
            "resized %s; the others are small enough, or JPEG would lose depth or bands", counted(resized, "image")
        )


def _add(writer: ShardWriter, images: ImageList, number: int, file: EncodedFile, config: PrepareDataConfig) -> None:
    """Write an image to the current shard; leave out an unreadable one or, with --bad_image error, raise DataError."""
    if not file.problem:
        writer.add(member_name(images, number, is_resized=file.is_resized), file.content)
        return
    if config.bad_image == "error":
        raise DataError(f"{file.problem}; {remedies('repair or remove the file', 'pass --bad_image skip')}")
    logger.warning("%s; left out", file.problem)
    writer.skip()


def member_name(images: ImageList, number: int, *, is_resized: bool = False) -> str:
    """Return the name of an image in its shard.

    Images of folders keep their paths. Names in archives and list files need not be unique, so such an image becomes
    CLASS/INDEX-NAME, or INDEX-NAME if its class has no name. Resized images have the suffix of JPEG.
    """
    path = images.paths[number]
    if images.archives or images.list_file:
        base = f"{number:09d}-{os.path.basename(path)}"
        base += "" if is_image(base) else _DEFAULT_SUFFIX
        path = base if images.numbered or not images.classes else f"{_class_folder(images, number)}/{base}"
    return path if not is_resized or path.lower().endswith(_JPEG_SUFFIXES) else path + _DEFAULT_SUFFIX


def _class_folder(images: ImageList, number: int) -> str:
    name = restore_name(images.classes[images.labels[number]]).replace("/", "_")
    return f"_{name}" if is_hidden(name) else name


def _digest(images: ImageList) -> str:
    digest = hashlib.sha256(repr(images.classes).encode("utf-8", "surrogateescape"))
    for path in images.paths:
        digest.update(os.fsencode(path) + b"\0")
    digest.update(images.labels.tobytes())
    return digest.hexdigest()


def _print_summary(images: ImageList, folder: Path, record: PackRecord) -> None:
    packed = sum(shard.images for shard in record.shards)
    left_out = f", {counted(len(images) - packed, 'image')} left out" if packed < len(images) else ""
    size = sum(shard.size for shard in record.shards) / 1e6
    print(f"{folder}: {counted(packed, 'image')} in {counted(len(record.shards), 'shard')}, {size:.1f} MB{left_out}")


def _prefix(folder: Path, root: Path) -> str:
    return folder.name if folder != root else _UNNAMED


def _list_path(root: Path, prefix: str) -> Path:
    return root / f"{prefix}.txt"


def _signs(prefix: str) -> tuple[str]:
    """Return the text by which a list file of this command is recognized."""
    return (f"{prefix}-000000.tar/",)


def _refuse_files_of_user(root: Path, prefix: str, names: Path | None) -> None:
    """Raise DataError if the place of the list file, or of the copy of `names`, holds another file."""
    path = _list_path(root, prefix)
    try:
        refuse_foreign(path, _signs(prefix))
    except FileExistsError:
        raise DataError(f"{path} exists, but does not list shards of DST; move it, or choose another DST") from None
    copy = root / CLASSES_FILE
    if names is not None and copy.exists() and copy.read_bytes() != names.read_bytes():
        raise DataError(f"{copy} exists, but differs from {names}; move it, or choose another DST")


def _copy(source: Path, target: Path) -> None:
    with atomic_replacement(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def _write_list(root: Path, folder: Path, record: PackRecord, images: ImageList) -> Path:
    """Write a list file of the members with their labels, in the order of the source, and return its path."""
    prefix = _prefix(folder, root)
    path = _list_path(root, prefix)
    with result_replacement(path, _signs(prefix)) as temporary, temporary.open("wb") as file:
        for shard in record.shards:
            index = read_index(str(folder / shard.name))
            assert index is not None, shard.name
            for member in index.names:
                place = os.fsencode(os.path.relpath(folder / shard.name / member, root))
                label = images.labels[int(member.partition("-")[0])]
                file.write(place + (b" %d\n" % label))
    return path
