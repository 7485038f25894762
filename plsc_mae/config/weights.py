"""Options of `plsc-mae weights ...`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plsc_mae.config.schema import Checked, in_group, option

FOLDER = "weights"
_heads = in_group("Attention heads")
_network = in_group("Network in the file")


@dataclass(kw_only=True, frozen=True)
class WeightsListConfig:
    """Options of `weights list`."""

    pattern: str = option("*", "shell pattern of the names, sources or dialects to list", metavar="PATTERN")
    output_dir: str = option(FOLDER, "folder of fetched files, to mark those already there")
    json: bool = option(False, "print JSON")


@dataclass(kw_only=True, frozen=True)
class WeightsFetchConfig(Checked):
    """Options of `weights fetch`."""

    name: str = option("", "name in `plsc-mae weights list`, or a URL", metavar="NAME")
    output_dir: str = option(FOLDER, "folder to write to")
    checksum: str = option("", "md5:DIGITS or sha256:DIGITS; leading digits suffice [the manifest's]")
    retries: int = option(5, "consecutive failures before giving up", within="[0, inf)")
    timeout: float = option(30.0, "seconds without data that count as a failure", within="(0, inf)", metavar="SECONDS")

    def _contradictions(self) -> Iterator[str]:
        if not self.name:
            yield "name the file: plsc-mae weights fetch NAME; `plsc-mae weights list` shows the names"


@dataclass(kw_only=True, frozen=True)
class NetworkOptions(Checked):
    """Options that locate the network in a weight file."""

    model_key: str = _network(
        "",
        "key of the network in the file, for example model_ema or teacher; alternatives are separated by | [detected]",
        metavar="KEY",
    )
    model_prefix: str = _network(
        "",
        "prefix of the network's tensor names, which is removed; other tensors are ignored [detected]",
        metavar="PREFIX",
    )


@dataclass(kw_only=True, frozen=True)
class HeadsOptions(Checked):
    """Numbers of attention heads, which many weight files do not store."""

    num_heads: int | None = _heads(
        None, "attention heads of the encoder, if the file does not determine them", within="[1, inf)"
    )
    decoder_num_heads: int | None = _heads(
        None, "attention heads of the decoder, if the file does not determine them", within="[1, inf)"
    )


@dataclass(kw_only=True, frozen=True)
class WeightsInspectConfig(HeadsOptions, NetworkOptions):
    """Options of `weights inspect`."""

    path: str = option("", "the file", metavar="FILE")
    tensors: bool = option(
        False, "also list every tensor: shape, type, mean and standard deviation of the finite values, number of NaN"
    )
    json: bool = option(False, "print JSON")

    def _contradictions(self) -> Iterator[str]:
        if not self.path:
            yield "name the file: plsc-mae weights inspect FILE"


@dataclass(kw_only=True, frozen=True)
class WeightsConvertConfig(HeadsOptions, NetworkOptions):
    """Options of `weights convert`."""

    path: str = option("", "the file", metavar="FILE")
    out: str = option("", "file to write; the suffix selects the format; for huggingface also a folder", metavar="FILE")
    dialect: str = option(
        "",
        "naming and layout to write, for example facebook, plsc or huggingface; docs/reference/dialects.md lists them",
        metavar="NAME",
    )
    encoder: bool = option(False, "write the encoder only")
    in_chans: int | None = option(None, "channels of the images of the new network [the file's]", within="[1, inf)")
    overwrite: bool = option(False, "replace OUT if it exists")

    def _contradictions(self) -> Iterator[str]:
        if not (self.path and self.out and self.dialect):
            yield "name what to convert: plsc-mae weights convert IN OUT --dialect NAME"


@dataclass(kw_only=True, frozen=True)
class WeightsDiffConfig(HeadsOptions):
    """Options of `weights diff`, which exits with code 1 if the files differ."""

    a: str = option("", "a weight file", metavar="FILE")
    b: str = option("", "the weight file to compare with", metavar="FILE")
    model_key: tuple[str, ...] = _network(
        (),
        "key of the network in both files, or one key for each, for example teacher student [detected]",
        metavar="KEY",
    )
    model_prefix: tuple[str, ...] = _network(
        (), "prefix of the network's tensor names in both files, or one for each [detected]", metavar="PREFIX"
    )
    tolerance: float = option(0.0, "largest absolute difference that counts as equal", within="[0, inf)")
    everything: bool = option(False, "compare all tensors, including optimizer state, by the names in the files")
    max_lines: int = option(10, "largest number of tensors to list of each kind", within="[0, inf)")
    json: bool = option(False, "print JSON, with all tensors")

    def _contradictions(self) -> Iterator[str]:
        if not (self.a and self.b):
            yield "name two files: plsc-mae weights diff A B"
        for name in ("model_key", "model_prefix"):
            if len(getattr(self, name)) > 2:
                yield f"--{name} got {len(getattr(self, name))} values; expected one, or one for each file"
