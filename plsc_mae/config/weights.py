"""Options of `plsc-mae weights ...`."""

from __future__ import annotations

from dataclasses import dataclass

from plsc_mae.config.schema import option
from plsc_mae.errors import ConfigError

FOLDER = "weights"


@dataclass(kw_only=True, frozen=True)
class WeightsListConfig:
    """Weights list: the weight files that have been published."""

    pattern: str = option("*", "shell pattern of names, sources or dialects that are shown")
    output_dir: str = option(FOLDER, "folder where fetched files are looked for")
    json: bool = option(False, "print JSON")


@dataclass(kw_only=True, frozen=True)
class WeightsFetchConfig:
    """Weights fetch: download a published file, or go on with a download."""

    name: str = option("", "name as `plsc-mae weights list` shows it, or an address, https://...")
    output_dir: str = option(FOLDER, "folder to put it in")
    checksum: str = option("", "md5:DIGITS or sha256:DIGITS, all or the first ones [the manifest's]")
    retries: int = option(5, "failures in a row after which it gives up", within="[0, inf)")
    timeout: float = option(30.0, "seconds of silence that count as a failure", within="(0, inf)")

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name the file: plsc-mae weights fetch NAME; `plsc-mae weights list` shows the names")


@dataclass(kw_only=True, frozen=True)
class HeadsOptions:
    """Heads: what no tensor tells."""

    num_heads: int | None = option(None, "encoder heads of a foreign file of unpublished width", within="[1, inf)")
    decoder_num_heads: int | None = option(None, "its decoder heads", within="[1, inf)")


@dataclass(kw_only=True, frozen=True)
class WeightsInspectConfig(HeadsOptions):
    """Weights inspect: what a weight file holds and what it can be used for."""

    path: str = option("", "the file")
    tensors: bool = option(False, "also list every tensor: shape, type, mean, standard deviation, what is no number")
    json: bool = option(False, "print JSON")

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("name the file: plsc-mae weights inspect FILE")


@dataclass(kw_only=True, frozen=True)
class WeightsConvertConfig(HeadsOptions):
    """Weights convert: write the network of a weight file for another code base."""

    path: str = option("", "the file")
    out: str = option("", "file to write, whose suffix tells its format; for huggingface also a folder")
    dialect: str = option("", "names and layouts to write, as facebook, plsc, huggingface; docs/weights.md lists them")
    encoder: bool = option(False, "write the encoder alone")
    overwrite: bool = option(False, "replace OUT if it is there")

    def __post_init__(self) -> None:
        if not (self.path and self.out and self.dialect):
            raise ConfigError("name what to convert: plsc-mae weights convert IN OUT --dialect NAME")


@dataclass(kw_only=True, frozen=True)
class WeightsDiffConfig(HeadsOptions):
    """Weights diff: compare two weight files tensor by tensor; exits with 1 if they differ."""

    a: str = option("", "a weight file")
    b: str = option("", "another")
    tolerance: float = option(0.0, "largest difference of two values that does not count", within="[0, inf)")
    everything: bool = option(False, "compare all tensors, as of optimizers, by the names in the files")
    max_lines: int = option(10, "most tensors that are told of each kind", within="[0, inf)")
    json: bool = option(False, "print JSON, with all of them")

    def __post_init__(self) -> None:
        if not (self.a and self.b):
            raise ConfigError("name two files: plsc-mae weights diff A B")
