"""Finds the archives that a data path names: a file, a folder of archives, or a pattern such as 'shards/*.tar'."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from plsc_mae.data.folder_walk import LeftOut, holds_images, is_image, scan
from plsc_mae.data.packed import binaries
from plsc_mae.data.packed.members import SUFFIXES, describe, is_archive
from plsc_mae.errors import DataError
from plsc_mae.file_kinds import REMEDIES

_SYNONYMS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
_SPLIT_FILE = re.compile(r"(train|training|val|valid|validation|test|testing)(?:[-_.].*)?")
_INNER = "data"  # folder of the files in repositories of Hugging Face
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000  # a longer range in braces is cut


def find_archives(data_path: str | Path, split: str, flag: str) -> list[str]:
    """Return the archives that a data path names; [] if it is a folder of images, another file or missing.

    Args:
        data_path: archive, folder or pattern. A pattern may have `*`, `?`, `[...]` and braces, as in `{000..146}`.
        split: wanted split of a folder whose subfolders, or whose archives' names, denote splits.
        flag: option that `data_path` comes from, for messages.

    Raises:
        DataError: a pattern matches no file or a file that is not an archive; a folder has only archives of other
            splits, or a file that is named like the archives beside it but is no archive.
        OSError: a folder or file cannot be read.
    """
    path = Path(data_path)
    if path.is_file():
        return [str(path)] if is_archive(path) else []
    if path.is_dir():
        return _in_folder(path, split, flag)
    return [] if path.exists() or not is_pattern(str(data_path)) else _matching(str(data_path), flag)


def has_archives_of(folder: Path, split: str) -> bool:
    """Return whether a folder has archives of a split, recognized by their subfolder or by their names."""
    names = _SYNONYMS.get(split, (split,))
    if binaries.files_in(folder, split) or any(_archives_in(folder / name) for name in names):
        return True
    return any(name in _by_split(_archives_in(folder) or _archives_in(folder / _INNER)) for name in names)


def is_pattern(text: str) -> bool:
    """Return whether a path contains pattern characters."""
    return any(character in text for character in "*?[{")


def _matching(pattern: str, flag: str) -> list[str]:
    found: list[str] = []
    for part in _expanded(pattern):
        matches = sorted(glob.glob(part, recursive=True))
        if not matches:
            raise DataError(f"{flag} {pattern}: no file matches {part}; correct the pattern, or quote it for the shell")
        found += matches
    for path in found:
        kind = describe(path) if os.path.isfile(path) else None
        if kind is None or not is_archive(path):
            what = "a folder" if os.path.isdir(path) else _content(path)
            remedy = "pass one folder, or name the archives in it" if kind is None else REMEDIES[kind.group]
            raise DataError(f"{flag} {pattern} matches {path}, which is {what}; expected tar, zip or Parquet: {remedy}")
    return found


def _content(path: str) -> str:
    """Return a phrase for the content of a file, for messages."""
    kind = describe(path)
    return kind.name if kind is not None else "text" if os.path.getsize(path) else "an empty file"


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the pattern with each combination of values in braces, `{a,b}` or `{000..146}`; without braces, itself."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    bounds = _RANGE.fullmatch(match[1])
    values: list[str] = match[1].split(",")
    if bounds is not None:
        numbers = range(int(bounds[1]), min(int(bounds[2]), int(bounds[1]) + _MOST_FILES) + 1)
        values = [f"{number:0{len(bounds[1])}d}" for number in numbers]
    for value in values:
        yield from _expanded(pattern[: match.start()] + value + pattern[match.end() :])


def _in_folder(folder: Path, split: str, flag: str) -> list[str]:
    if files := binaries.files_in(folder, split):
        return [str(file) for file in files]
    for name in _SYNONYMS.get(split, (split,)):
        if (folder / name).is_dir():
            return _archives_in(folder / name)
    files_by_split = _by_split(_archives_in(folder) or _archives_in(folder / _INNER))
    if not files_by_split:
        return []
    if "" in files_by_split:
        return sorted(path for paths in files_by_split.values() for path in paths)
    for name in _SYNONYMS.get(split, (split,)):
        if name in files_by_split:
            return files_by_split[name]
    raise DataError(
        f"{flag} {folder} has archives of {', '.join(sorted(files_by_split))} and none of '{split}', such as "
        f"{next(iter(files_by_split.values()))[0]}; name the files with a pattern"
    )


def _archives_in(folder: Path) -> list[str]:
    """Return the archives in a folder, sorted; [] if it is missing, has none, or has images in it or its subfolders.

    DataError is raised if some files named like archives are archives and others are not, for example an empty shard.
    """
    if not folder.is_dir():
        return []
    folders, files = scan(folder, LeftOut())
    found = [str(folder / name) for name in files if name.lower().endswith(SUFFIXES)]
    if not found or any(map(is_image, files)) or any(holds_images(folder / name) for name in folders):
        return []
    others = [path for path in found if not is_archive(path)]
    if others and len(others) < len(found):
        raise DataError(
            f"{others[0]} is {_content(others[0])}, but the other files of {folder} are archives; copy it again, or "
            "remove it"
        )
    return [] if others else found


def _by_split(paths: list[str]) -> dict[str, list[str]]:
    """Return archives by the split that their names start with, under "" if they start with none."""
    found: dict[str, list[str]] = {}
    for path in paths:
        match = _SPLIT_FILE.fullmatch(os.path.basename(path).lower())
        found.setdefault(match[1] if match else "", []).append(path)
    return found
