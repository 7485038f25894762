"""Options of `stats`, which measures the channels of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plsc_mae.config.pixels import FormatOptions
from plsc_mae.config.schema import in_group, option
from plsc_mae.config.tools import WORKERS_HELP
from plsc_mae.errors import ConfigError

_images = in_group("Images")


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
    num_workers: int | None = option(None, WORKERS_HELP, within="[0, inf)")

    def __post_init__(self) -> None:
        if not self.data_path:
            raise ConfigError("name the images: plsc-mae stats DIR")
