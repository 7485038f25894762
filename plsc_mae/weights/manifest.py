"""The manifest of published weight files: what there is, whose it is, what it is good for and where it is.

`plsc-mae weights list` shows it and `plsc-mae weights fetch` downloads by it. The data, manifest.yaml, lies in the
package so that an installed one has it too.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from plsc_mae.errors import ConfigError

MANIFEST = Path(__file__).with_name("manifest.yaml")
DIGITS = {"md5": 32, "sha256": 64}


@dataclass(frozen=True)
class Checksum:
    """A checksum, or the first hexadecimal digits of one where no more has been published."""

    algorithm: str
    digits: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read "md5:DIGITS", "sha256:DIGITS", or all digits of either.

        Raises:
            ConfigError: it is none of these.
        """
        algorithm, _, digits = text.strip().lower().rpartition(":")
        if not algorithm:
            algorithm = next((name for name, length in DIGITS.items() if length == len(digits)), "")
        if not re.fullmatch("[0-9a-f]+", digits) or len(digits) > DIGITS.get(algorithm, 0):
            raise ConfigError(
                f"checksum '{text}': expected md5: or sha256: and hexadecimal digits, all of them or the first ones"
            )
        return cls(algorithm, digits)

    @property
    def is_whole(self) -> bool:
        """Whether all digits are known."""
        return len(self.digits) == DIGITS[self.algorithm]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


@dataclass(frozen=True)
class Entry:
    """A published file. Empty is what is not known.

    Attributes:
        name: how commands call it.
        source: whose file it is.
        licence: of that project, "not stated" where no statement is known.
        network: what it holds.
        dialect: naming of its tensors.
        good_for: what it can be used for.
        accuracy: what its source reports for ImageNet-1k, top-1 in percent.
        url: where a program can get it.
        by_hand: why no program can; this or `url` is given.
        page: where a person can read about it, or get it.
        file: its name here.
        checksum: as far as it has been published.
        bytes: its size.
        note: what else one should know.
    """

    name: str
    source: str
    licence: str
    network: str
    dialect: str
    good_for: str
    page: str
    file: str
    accuracy: str = ""
    url: str = ""
    by_hand: str = ""
    checksum: Checksum | None = None
    bytes: int | None = None
    note: str = ""

    def path(self, folder: str | Path) -> Path:
        """Where the file lies once it is fetched into a folder."""
        return Path(folder) / self.file


def read_manifest(path: Path = MANIFEST) -> dict[str, Entry]:
    """Read and check a manifest: {name: entry} in its order.

    Raises:
        ConfigError: it cannot be read, or an entry is not as it must be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"sources", "files"}:
        raise ConfigError(f"{path}: expected `sources` and `files`")
    for part, table in content.items():
        if not isinstance(table, dict) or not all(isinstance(values, dict) for values in table.values()):
            raise ConfigError(f"{path}: {part}: expected a table of tables")
    return {name: _entry(name, values, content["sources"], path) for name, values in content["files"].items()}


def find_entry(entries: Mapping[str, Entry], name: str) -> Entry:
    """Look an entry up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else "; `plsc-mae weights list` shows the names"
        raise ConfigError(f"no published file is called '{name}'{hint}")
    return entries[name]


def matching(entries: Mapping[str, Entry], pattern: str) -> list[Entry]:
    """Entries whose name, source or dialect matches a shell pattern, in the order of the manifest.

    Raises:
        ConfigError: there is none.
    """
    found = [
        entry
        for entry in entries.values()
        if any(fnmatch.fnmatchcase(text, pattern) for text in (entry.name, entry.source, entry.dialect))
    ]
    if not found:
        raise ConfigError(f"no published file matches '{pattern}'; `plsc-mae weights list` shows all")
    return found


def file_name(url: str) -> str:
    """The name of the file that an address ends with.

    Raises:
        ConfigError: it does not end with one.
    """
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ConfigError(f"{url} does not end with the name of a file")
    return name


def _entry(name: str, values: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]], path: Path) -> Entry:
    """Check the values of one entry and build it."""
    where = f"{path}: {name}"
    known = {field.name for field in fields(Entry)} - {"name", "licence"}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'; known: {', '.join(sorted(known))}")
        if (key == "bytes") != (type(value) is int) or (key != "bytes" and not (isinstance(value, str) and value)):
            raise ConfigError(
                f"{where}: {key}: expected {'a whole number' if key == 'bytes' else 'text'}, got {value!r}"
            )
    for key in ("source", "network", "dialect", "good_for"):
        if key not in values:
            raise ConfigError(f"{where}: {key} is missing")
    if ("url" in values) == ("by_hand" in values):
        raise ConfigError(f"{where}: expected either url or by_hand")
    if not values.get("url", "https://").startswith("https://"):
        raise ConfigError(f"{where}: url: expected https://..., got {values['url']}")
    source = sources.get(values["source"], {})
    if set(source) != {"licence", "page"}:
        raise ConfigError(f"{where}: source '{values['source']}' is not among the sources, with licence and page")
    try:
        file = values.get("file") or (file_name(values["url"]) if "url" in values else f"{name}.pth")
        checksum = Checksum.parse(values["checksum"]) if "checksum" in values else None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if Path(file).name != file:
        raise ConfigError(f"{where}: file: expected a name without folders, got '{file}'")
    return Entry(**{**source, **values, "name": name, "file": file, "checksum": checksum})
