"""Check of the image files of a run before its first update, divided among the processes.

If a list has bad files or at least KEPT_FILES files, the main process writes the result of all lists to data_check.json
in the output folder. A later start with the same list and pixel settings uses that result. It examines only the bad
files again, which may have been repaired; those that crashed or blocked a data worker stay bad. If the bad files are
the same as before, it gives their number and does not name them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle

from plsc_mae.config import TrainingConfig
from plsc_mae.data.band_misfit import describe_misfit, reason_among
from plsc_mae.data.check import FileReport, Note, check_files, examine_file
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.sequence import SequenceImages
from plsc_mae.data.unreadable import shortened
from plsc_mae.errors import CheckpointError, DataError
from plsc_mae.files import result_replacement
from plsc_mae.loading import pixel_settings
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.runtime import count_workers

RESULT = "data_check.json"
KEPT_FILES = 10_000  # smaller lists are checked again by every run
_SIGNS = ('"digest": ',)  # by which the file is recognized
_NAMED_FILES = 5
_CRASHED = "crashed or blocked a data worker"

logger = logging.getLogger(__name__)
Notes = npt.NDArray[np.int64]


class BadFile(NamedTuple):
    """File that cannot be read."""

    number: int  # zero-based index of the file in its list
    reason: str  # sentence that names the file and the reason


def check_data(config: TrainingConfig, world: World, lists: Mapping[str, ImageList]) -> dict[str, list[BadFile]]:
    """Check the files of a run and return the bad ones by the name of their list; all processes must call.

    With --bad_image skip, the bad files are also added to `unreadable` of their list. With --no_check_data nothing is
    checked, and the result is {}. Images of sequences are not checked, and are absent from the result.

    Args:
        config: options of the run: --check_data, --bad_image and those for reading images.
        world: processes among which the files are divided.
        lists: the lists by name, for example "train" and "val"; {} in pipeline stages that read no files.

    Raises:
        DataError: files are bad and --bad_image is error, or all files of a list are bad (the message names the first
            ones), most files of a list need other options for their bands, or data workers keep dying.
        ConfigError: a package that reads the files is not installed.
        CheckpointError: data_check.json cannot be written.
    """
    if not config.check_data:
        return {}
    lists = {name: images for name, images in lists.items() if not isinstance(images, SequenceImages)}
    values = pixel_settings.settled_format(config)
    path = Path(config.output_dir) / RESULT
    known = _read(path) if world.is_main else {}
    digests = {name: _digest(images, values) if world.is_main else "" for name, images in lists.items()}
    known = {name: entry for name, entry in known.items() if entry.get("digest") == digests.get(name)}
    notes_by_list = _notes(lists, known, config, world, values)
    reports = {
        name: {
            index: _report(images.path(index), int(notes_by_list[name][index]), values)
            for index in np.flatnonzero(notes_by_list[name] & Note.BAD).tolist()
        }
        for name, images in lists.items()
    }
    misfits = [describe_misfit(images, reports[name], values) for name, images in lists.items()]
    if any(misfits):  # further bad files are named when these can be read
        raise DataError("; ".join(filter(None, misfits)))
    found, entries = {}, {}
    for name, images in lists.items():
        found[name] = [
            BadFile(index, reason_among(images, index, report, values)) for index, report in reports[name].items()
        ]
        bad = {images.path(file.number): file.reason for file in found[name]}
        entries[name] = {"root": images.root, "images": len(images), "digest": digests[name], "bad": bad}
    if world.is_main and (any(found.values()) or any(len(images) >= KEPT_FILES for images in lists.values())):
        _write(path, entries)
    hopeless = any(len(found[name]) == len(images) for name, images in lists.items())
    if hopeless or (any(found.values()) and config.bad_image == "error"):
        texts = [_describe(images, found[name]) for name, images in lists.items() if found[name]]
        skip = "" if hopeless else ", or pass --bad_image skip"
        raise DataError(f"{'; '.join(texts)}; {path} lists them; repair or remove the files{skip}")
    for name, images in lists.items():
        for file in found[name]:
            images.unreadable.add(file.number)  # so that the data set does not name them again
    if any(found.values()) and world.is_main:
        named = {name for name in lists if entries[name]["bad"] == known.get(name, {}).get("bad")}
        texts = [_describe(lists[name], bad, named=name in named) for name, bad in found.items() if bad]
        logger.warning("%s; they are skipped, and %s lists them", "; ".join(texts), path)
    return found


def _notes(
    lists: Mapping[str, ImageList],
    known: Mapping[str, Mapping[str, Any]],
    config: TrainingConfig,
    world: World,
    values: PixelFormat,
) -> dict[str, Notes]:
    """Return the `Note` flags of each file, int64 [n], by the names of the lists; all processes must call.

    The data-parallel processes divide the files of a list among them. If the main process has an earlier result of the
    list in `known`, only the bad files of that result are examined, by the main process; the others count as good.
    """
    is_known = {name: int(world.sum(paddle.to_tensor([int(name in known)], dtype="int64")).item()) for name in lists}
    notes = {}
    for name, images in lists.items():
        if is_known[name]:
            notes[name] = _notes_of_known(images, known.get(name, {"bad": {}})["bad"], values)
        else:
            notes[name] = check_files(
                images,
                num_workers=count_workers(config.num_workers),
                rank=world.rank,
                world_size=world.size,
                worker_timeout=config.worker_timeout,
                pixel_format=values,
                remedy="; --no_check_data leaves it out",
            )
    world.barrier()  # waiting for slower processes can exceed the timeout of a reduction
    return {name: world.sum(paddle.to_tensor(array)).numpy() for name, array in notes.items()}


def _notes_of_known(images: ImageList, bad: Mapping[str, str], values: PixelFormat) -> Notes:
    """Return the `Note` flags of each file, int64 [n], from an earlier result.

    `bad` maps the path of each bad file to the reason. These files are examined again, except those that crashed or
    blocked a data worker, which stay bad.
    """
    notes = np.zeros(len(images), np.int64)
    for index in range(len(images)) if bad else ():
        path = images.path(index)
        if bad.get(path, "").endswith(_CRASHED):
            notes[index] = Note.BAD | Note.FATAL
        elif path in bad:
            notes[index] = examine_file(path, values).notes
    return notes


def _report(path: str, notes: int, values: PixelFormat) -> FileReport:
    """Return the report of a bad file; examine it again, unless it crashed or blocked a data worker."""
    if notes & Note.FATAL:
        return FileReport(Note(notes), f"{path} {_CRASHED}")
    report = examine_file(path, values)
    return report if report.reason else FileReport(Note(notes), f"{path} could not be read")


def _describe(images: ImageList, bad: list[BadFile], *, named: bool = False) -> str:
    """Return a clause with the number of bad files of a list and, unless they have been `named`, the first of them."""
    number = f"{len(bad)} of {len(images)} files of {images.source} cannot be used"
    if named:
        return f"{number}, the same as before"
    first = "; ".join(
        shortened(file.reason, images.path(file.number), images.name(file.number)) for file in bad[:_NAMED_FILES]
    )
    more = f"; and {len(bad) - _NAMED_FILES} more" if len(bad) > _NAMED_FILES else ""
    return f"{number}: {first}{more}"


def _digest(images: ImageList, values: PixelFormat) -> str:
    """Return a digest of the names of the files and of the settings for reading them."""
    digest = hashlib.sha256(repr((images.root, values)).encode("utf-8", "surrogateescape"))
    for index in range(len(images)):
        digest.update(images.paths[index].encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Return the result of an earlier check by list name, without damaged entries; {} if the file cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = content.items() if isinstance(content, dict) else ()
    return {name: entry for name, entry in found if isinstance(entry, dict)}


def _write(path: Path, entries: Mapping[str, Any]) -> None:
    try:
        with result_replacement(path, _SIGNS) as temporary:
            temporary.write_text(as_json(entries, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another --output_dir") from None
