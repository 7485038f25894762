"""Options of `prepare-data`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import option
from plsc_mae.errors import ConfigError

QUALITY = 92
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(kw_only=True, frozen=True)
class PrepareDataConfig:
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

    def __post_init__(self) -> None:
        if not self.src or not self.dst:
            raise ConfigError("name the images and a new folder: plsc-mae prepare-data SRC DST")
        if self.quality is not None and self.short is None:
            raise ConfigError(
                "--quality has no effect without --short: files that are not resized are copied unchanged"
            )
        if self.shard_bytes < 1:
            raise ConfigError(f"--shards {self.shards}: expected a size such as 1000M, 2G or 500000000")

    @property
    def shard_bytes(self) -> int:
        """Largest size of a shard in bytes; 0 if --shards is malformed."""
        match = re.fullmatch(r"(\d+)([KMGT]?)B?", self.shards.strip().upper())
        return int(match[1]) * _UNITS[match[2]] if match else 0
