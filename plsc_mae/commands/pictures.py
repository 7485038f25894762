"""Input images and output files of the commands that draw panels."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plsc_mae.analysis.fonts import drawable_names
from plsc_mae.data.classes import Reference, match_images
from plsc_mae.data.decode import open_image
from plsc_mae.data.folder_walk import ARRAY_EXTENSIONS, EXTENSIONS
from plsc_mae.data.imagefolder import log_left_out
from plsc_mae.data.listing import ImageList, PathTable, list_images, list_of_split, refuse_absent_split
from plsc_mae.data.packed.find import is_pattern
from plsc_mae.data.packed.members import is_archive, is_member, split_member
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.tiles import center_tile
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.data.unreadable import none_can_be_read
from plsc_mae.errors import DataError, remedies
from plsc_mae.file_kinds import REMEDIES, UNKNOWN, FileKind, read_head, recognize
from plsc_mae.files import MARK, refuse_foreign, result_replacement
from plsc_mae.methods.base import Pictures
from plsc_mae.names import escape_name, without_parents
from plsc_mae.wording import counted

SHEET_ROWS = 10  # panels in the sheet
_SHEET = "sheet.png"
_MAX_NAME_BYTES = 200  # most file systems allow 255
_MARK_KEY, _NETWORK_KEY = "Software", "Source"

logger = logging.getLogger(__name__)


def find_pictures(img_path: str) -> ImageList:
    """List the images of a folder, of archives or of a list file, or the single image `img_path`.

    Of a folder with val/ or val.txt only that split is used, and the log says so. Only lists have classes. The log
    counts files of folders and archives that are left out.

    Raises:
        DataError: there are no images, the file is no image, or the images cannot be listed.
        ConfigError: a package that reads the archives is not installed.
    """
    path = list_of_split(Path(img_path), "val") or Path(img_path)
    if path.is_file() and _is_list(path):
        return _named(list_images(path, "val", flag="--img_path"), img_path)
    if path.is_file() and not _holds_images(path):
        _require_picture(path)
    elif not is_member(img_path):
        return _named(_find_several(img_path), img_path)
    return ImageList(PathTable([path.name]), np.full(1, -1, np.int64), (), str(path.parent))


def true_outputs(images: ImageList, img_path: str, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the output [n] of a classifier for the true class of each image; -1 where that is unknown.

    As in training and evaluation, folders and lists give the classes, which `match_images` finds among the `names` of
    the outputs. If one of the classes has no output, all are unknown.

    Args:
        images: result of `find_pictures`.
        img_path: its argument.
        names: names of the outputs.
    """
    unknown = np.full(len(images), -1, np.int64)
    with contextlib.suppress(DataError):
        labeled = images if images.classes else list_images(img_path, "val", flag="--img_path")
        if labeled.classes:
            labels = match_images(labeled, Reference(names, "the classifier", "")).labels
            outputs = dict(zip(labeled.paths, labels.tolist(), strict=True))
            return np.array([outputs.get(path, -1) for path in images.paths], np.int64)
    return unknown


def _named(images: ImageList, img_path: str) -> ImageList:
    """Return images, and log their number and source if that is only a part of `img_path`."""
    if Path(img_path).is_dir() and Path(images.source) != Path(img_path):
        logger.info("reading %s of %s", counted(len(images), "image"), images.source)
    return images


def _find_several(img_path: str) -> ImageList:
    path = Path(img_path)
    if not path.is_dir() and not path.is_file() and not is_pattern(img_path) and split_member(img_path) is None:
        state = "is a pipe, socket or device" if path.exists() else "does not exist"
        refuse_absent_split(path, "--img_path")
        raise DataError(
            f"--img_path {path} {state}; expected an image, a folder or list file of images, or a tar or zip archive"
        )
    images = list_images(img_path, "val", flag="--img_path", labeled=False)
    log_left_out(images, alternative="pass one of them as --img_path")
    return images


def _holds_images(path: Path) -> bool:
    """Return whether a file is an archive; False if it cannot be read."""
    with contextlib.suppress(OSError):
        return is_archive(path)
    return False


def _is_list(path: Path) -> bool:
    """Return whether a file is text and its name is not that of an image; False if it cannot be read."""
    if path.name.lower().endswith((*EXTENSIONS, *ARRAY_EXTENSIONS)):
        return False
    with contextlib.suppress(OSError):
        return recognize(read_head(path)) is None and not _has_text_header(path)
    return False


def _require_picture(path: Path) -> None:
    """Raise DataError if a file cannot be read or is surely no image; the decoder judges unknown binary formats."""
    if path.name.lower().endswith(ARRAY_EXTENSIONS):
        return
    try:
        kind = recognize(read_head(path))
    except OSError as error:
        raise DataError(f"cannot read --img_path {path}: {error.strerror}") from None
    if kind is None and not _has_text_header(path):
        kind = FileKind("a text file", "text")
    if kind is not None and kind.group != "picture" and kind.name != UNKNOWN:
        raise DataError(
            f"--img_path {path} is {kind.name}; expected an image or a folder of images: {REMEDIES[kind.group]}"
        )


def _has_text_header(path: Path) -> bool:
    """Return whether Pillow recognizes the format of an image, which may be text, such as XPM."""
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's plug-ins let exceptions of many types escape
        return False


def choose_images(images: ImageList, most: int) -> list[int]:
    """Return at most `most` indices of images, evenly spaced, and log how to draw all of them if there are more."""
    if len(images) > most:
        logger.info("drawing %d of %d images, evenly spaced; --max_images %d draws all", most, len(images), len(images))
    return spread(len(images), most)


def spread(length: int, most: int) -> list[int]:
    """Return at most `most` indices, spaced evenly over [0, length)."""
    count = min(most, length)
    return [i * length // count for i in range(count)]


class PictureReader:
    """Iterable over (index, sample) of the chosen images that can be read.

    Args:
        images: the images.
        chosen: indices of the images to read.
        view: transform of the images.
        seed: seed of the transform's random draws.
        pixel_format: format of the pixels.
        bad_image: "error" raises DataError for an image that cannot be read; "skip" logs it and leaves it out.

    Attributes:
        unreadable: number of images that could not be read so far.
    """

    def __init__(
        self,
        images: ImageList,
        chosen: Sequence[int],
        view: Transform,
        *,
        seed: int = 0,
        pixel_format: PixelFormat = RGB,
        bad_image: Literal["error", "skip"] = "skip",
    ) -> None:
        self.images, self.chosen, self.view, self.seed, self.pixel_format = images, chosen, view, seed, pixel_format
        self.bad_image, self.unreadable = bad_image, 0

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        """Yield the readable images.

        Raises:
            DataError: none of the images can be read, or one cannot and `bad_image` is "error".
            ConfigError: a package that reads the images is not installed.
        """
        first = ""
        for index in self.chosen:
            try:
                image = open_image(self.images.path(index), pixel_format=self.pixel_format)
                image = center_tile(image, self.pixel_format.tile)
                sample = self.view(image, sample_rng(self.seed, 0, index))
            except DataError as error:
                if self.bad_image == "error":
                    raise DataError(
                        f"{error}; {remedies('repair or remove the file', 'pass --bad_image skip')}"
                    ) from None
                self.unreadable += 1
                first = first or str(error)
                if self.unreadable == len(self.chosen):
                    raise none_can_be_read(first, self.unreadable) from None
                logger.warning("%s; left out", error)
                continue
            yield index, sample


class Sheet:
    """Panels of up to SHEET_ROWS images for one picture, evenly spaced over the chosen images.

    The next readable image replaces one that cannot be read.

    Args:
        images: the images.
        chosen: indices of the images to draw, in ascending order.
    """

    def __init__(self, images: ImageList, chosen: Sequence[int]) -> None:
        self._images = images
        self._places = [chosen[i] for i in spread(len(chosen), SHEET_ROWS)]
        self._panels: list[Pictures] = []
        self._indices: list[int] = []
        self._notes: list[str] = []
        self._drawn = 0

    def add(self, panel: Pictures, index: int, note: str = "") -> None:
        """Take the panel {label: uint8 [1, H, W, 3]} of an image if it belongs to the sheet.

        Call this for every readable image, in ascending order. The `note` precedes the name of the image.
        """
        self._drawn += 1
        row = len(self._panels)
        if row < len(self._places) and index >= self._places[row]:
            self._panels.append(panel)
            self._indices.append(index)
            self._notes.append(note)

    def rows(self) -> Pictures:
        """Return the panels, {label: uint8 [B, H, W, 3]}, and log if they are fewer than the images; {} below two."""
        if len(self._panels) < 2:
            return {}
        if len(self._panels) < self._drawn:
            logger.info(
                "the sheet shows %d of these %d images, evenly spaced; every one has a panel of its own",
                *(len(self._panels), self._drawn),
            )
        return {label: np.concatenate([panel[label] for panel in self._panels]) for label in self._panels[0]}

    def captions(self) -> list[str]:
        """Return the note of each row and the path of its image without leading ../, in drawable characters."""
        paths = [without_parents(self._images.name(index)) for index in self._indices]
        names = drawable_names(paths, self._indices)
        return [f"{note} ({name})" if note else name for name, note in zip(names, self._notes, strict=True)]


class PanelFolder:
    """Folder of a command's panels: one PNG per image with a name of its own, and a sheet.

    A panel is named after its image: `a/0.jpg`, `../a/0.jpg` and `/a/0.jpg` give a_0.png, or a longer name if that is
    taken. No name begins with a dot, which would hide the file. Every panel carries
    the name of the command and a digest of its image's path, so that a repeated command replaces its own panels, and
    neither other files nor the panel of another image. Every panel also names its network, so that a warning can name
    the one whose pictures will be replaced.

    Args:
        command: name of the command.
        save_path: the folder.
        images: the images.
        chosen: indices of the images to draw.
        img_path: the value of --img_path.
        network: the weights that the pictures show, such as the path of their file.

    Raises:
        DataError: a file that plsc_mae did not write has the name of a panel or sheet, or --save_path cannot be used or
            is in a folder of the images.
    """

    def __init__(
        self, command: str, save_path: str, images: ImageList, chosen: Sequence[int], img_path: str, network: str
    ) -> None:
        self.command, self.folder, self.images = command, Path(save_path), images
        self.network = escape_name(network)
        if Path(img_path).is_dir():
            self._check_outside(Path(images.root))
        self._own_sheet = f"sheet-{command}.png"
        self._names: dict[int, str] = {}
        taken: set[str] = set()
        stems = Counter(_flat(images.paths[i], suffix=False) for i in range(len(images)))
        for index in chosen:
            name = self._free_name(index, stems, taken)
            taken.add(name.casefold())
            self._names[index] = name
        self._sheet = self._free_sheet()
        self._warn_of_other_networks(len(chosen) > 1)

    def save(self, picture: Image.Image, index: int) -> Path:
        """Write the panel of an image and return its path.

        Raises:
            DataError: the file cannot be written.
        """
        return save_png(picture, self.folder / self._names[index], self._mark(index), network=self.network)

    def save_sheet(self, picture: Image.Image) -> Path:
        """Write the sheet of several panels and return its path.

        Raises:
            DataError: the file cannot be written.
        """
        return save_png(picture, self._sheet, f"{MARK} {self.command}", network=self.network)

    def _warn_of_other_networks(self, has_sheet: bool) -> None:
        """Log whose pictures will be replaced, unless they are those of the same network."""
        paths = [*(self.folder / name for name in self._names.values()), *([self._sheet] if has_sheet else [])]
        others = Counter(_text_of(path, _NETWORK_KEY) for path in paths)
        for known in ("", self.network):
            del others[known]
        if others:
            logger.warning(
                "%s of %s in %s will be replaced by those of %s; another --save_path keeps both",
                *(counted(others.total(), "picture"), " and ".join(others), self.folder, self.network),
            )

    def _check_outside(self, root: Path) -> None:
        inner, outer = os.path.realpath(self.folder), os.path.realpath(root)
        folders = {os.path.dirname(self.images.paths[index]) for index in range(len(self.images))}
        if os.path.commonpath([inner, outer]) == outer or inner in map(os.path.realpath, (root / f for f in folders)):
            raise DataError(
                f"--save_path {self.folder} is in {root}, where the images are, and the next run would take the panels "
                "for images; choose a folder elsewhere for --save_path"
            )

    def _free_name(self, index: int, stems: Counter[str], taken: set[str]) -> str:
        for name in _candidates(self.images.paths[index], stems, (_SHEET, self._own_sheet)):
            if name.casefold() in taken:
                continue
            path = self.folder / name
            _require_own(path)
            if _text_of(path, _MARK_KEY) in ("", self._mark(index)):
                return name
        raise AssertionError("the candidates are endless")

    def _free_sheet(self) -> Path:
        """Return the path of the sheet: sheet.png, or sheet-COMMAND.png if another command has written the former."""
        shared, own = self.folder / _SHEET, self.folder / self._own_sheet
        _require_own(shared)
        if _text_of(shared, _MARK_KEY) in ("", f"{MARK} {self.command}"):
            return shared
        _require_own(own)
        return own

    def _mark(self, index: int) -> str:
        """Return the text that identifies an image's panel, with a digest of the path, which may not be ASCII."""
        path = os.fsencode(os.path.realpath(self.images.path(index)))
        return f"{MARK} {self.command}, image {hashlib.sha256(path).hexdigest()}"


def _flat(path: str, *, suffix: bool) -> str:
    """Return an image's path as a file name of limited length; if not `suffix`, without suffix and in lower case."""
    name = path.lstrip("./").replace("/", "_") or "_"
    if not suffix:
        name = os.path.splitext(name)[0].casefold()
    encoded = os.fsencode(name)
    if len(encoded) <= _MAX_NAME_BYTES:
        return name
    return f"{os.fsdecode(encoded[: _MAX_NAME_BYTES - 9])}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def _candidates(path: str, stems: Counter[str], reserved: tuple[str, ...]) -> Iterator[str]:
    """Yield the possible names of an image's panel, the best one first, without the `reserved` names of sheets."""
    whole, stem = _flat(path, suffix=True), _flat(path, suffix=False)
    if stems[stem] == 1 and f"{stem}.png" not in reserved:
        yield f"{os.path.splitext(whole)[0]}.png"
    if f"{whole.casefold()}.png" not in reserved:
        yield f"{whole}.png"
    number = 2
    while True:
        yield f"{whole}-{number}.png"
        number += 1


def _require_own(path: Path) -> None:
    try:
        refuse_foreign(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None


def _text_of(path: Path, key: str) -> str:
    """Return a text that `save_png` put into a PNG file; "" without a file or such a text."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    with Image.open(path) as picture:
        return str(picture.info.get(key, ""))


def save_png(picture: Image.Image, path: Path, mark: str, flag: str = "--save_path", network: str = "") -> Path:
    """Write a PNG file with a mark in its metadata, which identifies it as a result, and return its path.

    Args:
        picture: the picture.
        path: the file.
        mark: the mark.
        flag: the option that names the file, for the message of an error.
        network: the weights that the picture shows, for the metadata.

    Raises:
        DataError: the file cannot be written, or exists and is not a result.
    """
    info = PngInfo()
    info.add_text(_MARK_KEY, mark)
    if network:
        info.add_text(_NETWORK_KEY, network)
    try:
        with result_replacement(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another {flag}") from None
    return path
