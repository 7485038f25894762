"""Options of `plsc-mae launch`, which starts another command in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from plsc_mae.config.schema import option


@dataclass(kw_only=True, frozen=True)
class LaunchConfig:
    """Options of `launch`; they stand before the command to start."""

    aliases: ClassVar[dict[str, str]] = {"processes": "nproc_per_node", "gpus": "devices"}

    nproc_per_node: int | None = option(
        None, "processes on this machine; also --processes [one per GPU, or per core without a GPU]", within="[1, inf)"
    )
    devices: str = option("", "GPUs of this machine, separated by commas [all]", metavar="0,1,...")
    nnodes: int = option(1, "machines; start the same command on each of them", within="[1, inf)")
    master: str = option("", "IP address and free port of one of the machines", metavar="IP:PORT")
    rank: int | None = option(None, "index of this machine, from 0 [agreed among the machines]", within="[0, inf)")
    log_dir: str = option("log", "folder of workerlog.N, the output of process N on this machine")


class Launch(NamedTuple):
    """A launch of a command."""

    options: LaunchConfig  # options of the launch itself
    command: Sequence[str]  # the command to start and its options, one word each
    device: str = "auto"  # the option `device` of that command, or "auto" if it has none


def split_launch(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the words after `launch` into (options of `launch`, command line to start).

    Every option but -h and --help has one value. The command is the first word that is neither option nor value.
    """
    i = 0
    while i < len(words) and words[i].startswith("-"):
        has_value = "=" in words[i] or words[i] in ("-h", "--help")
        i += 1 if has_value else 2
    return list(words[:i]), list(words[i:])
