"""Options of `split`, `stats`, `prepare-data`, `demo-data` and `random-tokenizer`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.features import WORKERS_HELP
from plsc_mae.config.pixels import FormatOptions
from plsc_mae.config.schema import Checked, in_group, option
from plsc_mae.file_kinds import TABLE_SUFFIXES

_images = in_group("Images")
QUALITY = 92
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(kw_only=True, frozen=True)
class SplitConfig(Checked):
    """Options of `split`, which divides labeled images into training and validation images."""

    src: str = option("", "class folders, list file, archive, or CSV file of paths and classes", metavar="SRC")
    dst: str = option("", "new folder for train.txt, val.txt and classes.txt", metavar="DST")
    val_fraction: float = option(0.2, "fraction of the images of every class for validation", within="(0, 1)")
    seed: int = option(0, "seed of the choice", within="[0, inf)")
    group_by: str = option(
        "",
        "regular expression for the part of a path that images of one object share; they are not divided",
        metavar="PATTERN",
    )
    group_column: str = option(
        "", "column of a CSV file whose value images of one object share; they are not divided", metavar="NAME"
    )
    image_path: str = option("", "base folder of the paths in a CSV file [the folder of the file]", metavar="DIR")
    label_column: str = option("", "column of the classes in a CSV file [the only one after the paths]", metavar="NAME")

    def _contradictions(self) -> Iterator[str]:
        if not self.src or not self.dst:
            yield "name the images and a new folder: plsc-mae split SRC DST"
        try:
            re.compile(self.group_by)
        except re.error as mistake:
            yield f"--group_by {self.group_by} is no regular expression: {mistake}"
        if self.group_column and self.group_by:
            yield "--group_column and --group_by both choose the groups; give one of them"
        if self.group_column and self.group_column == self.label_column:
            yield f"--group_column {self.group_column} is also the --label_column; name two columns"
        for name in ("image_path", "label_column", "group_column"):
            if getattr(self, name) and self.src and not self.is_table:
                yield f"--{name} is for a CSV file, but SRC is {self.src}; leave it out"

    @property
    def is_table(self) -> bool:
        """True if SRC is a CSV file, by its suffix."""
        return self.src.lower().endswith(TABLE_SUFFIXES)


@dataclass(kw_only=True, frozen=True)
class StatsConfig(FormatOptions):
    """Options of `stats`, which measures mean and standard deviation of every channel."""

    mean: ClassVar[None] = None
    std: ClassVar[None] = None
    stats: ClassVar[str] = ""

    data_path: str = option("", "image folder (its train/, if there is one) or list file", metavar="PATH")
    split: str = option("train", "subfolder of the image folder to use, if it exists", metavar="NAME")
    save_path: str = option("stats.json", "file to write, for --stats of a run", metavar="FILE")
    tile: int = _images(
        0,
        "as in the run; above 0, files of any size are read part by part; the statistics are of whole images",
        within="[0, inf)",
        metavar="SIDE",
    )
    bad_image: Literal["skip", "error"] = _images(
        "skip", "response to an image that cannot be decoded: skip leaves it out with a warning; error ends the command"
    )
    num_workers: int | None = option(None, WORKERS_HELP, within="[0, inf)")

    def _contradictions(self) -> Iterator[str]:
        if not self.data_path:
            yield "name the images: plsc-mae stats DIR"


@dataclass(kw_only=True, frozen=True)
class PrepareDataConfig(Checked):
    """Options of `prepare-data`, which packs images into tar shards and can resize them first."""

    src: str = option("", "image folder, list file, archive, or pattern of archives", metavar="SRC")
    dst: str = option("", "new folder for the shards; an interrupted call continues there", metavar="DST")
    short: int | None = option(
        None,
        "resize larger images to this shorter side, in pixels, and encode them as JPEG [copy all files unchanged]",
        within="[1, inf)",
        metavar="PIXELS",
    )
    quality: int | None = option(None, f"quality of the JPEG files [{QUALITY}]", within="[1, 100]")
    shards: str = option("1000M", "largest size of a shard: bytes, or a number with K, M, G or T", metavar="SIZE")
    bad_image: Literal["error", "skip"] = option(
        "error", "response to an image that cannot be read: error ends the command; skip leaves the image out"
    )
    num_workers: int | None = option(
        None, "processes that read and encode [up to 10, limited by the CPU cores]", within="[1, inf)"
    )

    def _contradictions(self) -> Iterator[str]:
        if not self.src or not self.dst:
            yield "name the images and a new folder: plsc-mae prepare-data SRC DST"
        if self.quality is not None and self.short is None:
            yield "--quality has no effect without --short: files that are not resized are copied unchanged"
        if self.shard_bytes < 1:
            yield f"--shards {self.shards}: expected a size such as 1000M, 2G or 500000000"

    @property
    def shard_bytes(self) -> int:
        """Largest size of a shard in bytes; 0 if --shards is malformed."""
        match = re.fullmatch(r"(\d+)([KMGT]?)B?", self.shards.strip().upper())
        return int(match[1]) * _UNITS[match[2]] if match else 0


@dataclass(kw_only=True, frozen=True)
class DemoDataConfig(Checked):
    """Options of `demo-data`, which draws a folder of JPEG images."""

    path: str = option("", "folder to write to", metavar="DIR")
    image_size: int = option(64, "image side in pixels", within="[16, 1024]")
    train_per_class: int = option(400, "training images per class", within="[1, inf)")
    val_per_class: int = option(80, "validation images per class", within="[1, inf)")
    seed: int = option(0, "seed of the drawings", within="[0, inf)")
    kind: Literal["shapes", "objects"] = option(
        "shapes", "shapes: to measure features; objects: to look at reconstructions"
    )
    masks: bool = option(False, "also draw masks for `segprobe`; images are then below DIR/images, masks DIR/masks")

    def _contradictions(self) -> Iterator[str]:
        if not self.path:
            yield "name the folder to write to: plsc-mae demo-data DIR"


@dataclass(kw_only=True, frozen=True)
class RandomTokenizerConfig(Checked):
    """Options of `random-tokenizer`, which writes a dVAE with random weights."""

    path: str = option("", "folder to write encoder_weight.pd and decoder_weight.pd to", metavar="DIR")
    seed: int = option(0, "seed of the weights", within="[0, inf)")
    n_hid: int = option(256, "width of the first group of blocks, a multiple of 4", within="[4, inf)")
    vocab_size: int = option(8192, "number of tokens", within="[2, inf)")

    def _contradictions(self) -> Iterator[str]:
        if not self.path:
            yield "name the folder to write to: plsc-mae random-tokenizer DIR"
        if self.n_hid % 4:
            yield f"--n_hid must be a multiple of 4, got {self.n_hid}"
