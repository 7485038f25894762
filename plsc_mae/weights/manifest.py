"""Manifest of published weight files: their content, source, use and download address.

`plsc-mae weights list` prints the manifest, and `plsc-mae weights fetch` downloads files from it. The data are in
manifest.yaml, which is part of the installed package.
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
    """Checksum, or its first hexadecimal digits if only these were published."""

    algorithm: str
    digits: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Parse "md5:DIGITS" or "sha256:DIGITS", or all digits without the name of the algorithm.

        Raises:
            ConfigError: the text has another form.
        """
        algorithm, _, digits = text.strip().lower().rpartition(":")
        if not algorithm:
            algorithm = next((name for name, length in DIGITS.items() if length == len(digits)), "")
        if not re.fullmatch("[0-9a-f]+", digits) or len(digits) > DIGITS.get(algorithm, 0):
            raise ConfigError(
                f"checksum '{text}' is invalid: expected md5: or sha256: and all or the first hexadecimal digits"
            )
        return cls(algorithm, digits)

    @property
    def is_whole(self) -> bool:
        """True if all digits are known."""
        return len(self.digits) == DIGITS[self.algorithm]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


@dataclass(frozen=True)
class Entry:
    """Published weight file; unknown values are empty or None."""

    name: str  # name in commands
    source: str  # project that published it
    licence: str  # license of that project, "not stated" if none is known
    network: str  # network that the weights belong to
    dialect: str  # naming of its tensors
    good_for: str  # commands and options that can use it
    page: str  # web page about the file
    file: str  # local file name
    accuracy: str = ""  # ImageNet-1k top-1 accuracy in percent, as reported by the source
    url: str = ""  # download address
    by_hand: str = ""  # reason why the file must be downloaded manually; replaces `url`
    checksum: Checksum | None = None  # published checksum
    bytes: int | None = None  # size in bytes
    note: str = ""  # further remarks

    def path(self, folder: str | Path) -> Path:
        """Return the path of the file when it is fetched into `folder`."""
        return Path(folder) / self.file


def read_manifest(path: Path = MANIFEST) -> dict[str, Entry]:
    """Read and validate a manifest; return {name: entry} in the order of the file.

    Raises:
        ConfigError: the file cannot be read or is invalid.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"sources", "files"}:
        raise ConfigError(f"{path}: expected the keys `sources` and `files`")
    for part, table in content.items():
        if not isinstance(table, dict) or not all(isinstance(values, dict) for values in table.values()):
            raise ConfigError(f"{path}: {part}: expected a table of tables")
    return {name: _entry(name, values, content["sources"], path) for name, values in content["files"].items()}


def find_entry(entries: Mapping[str, Entry], name: str) -> Entry:
    """Return the entry called `name`.

    Raises:
        ConfigError: no entry has that name.
    """
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else "; `plsc-mae weights list` shows the names"
        raise ConfigError(f"no published file has the name '{name}'{hint}")
    return entries[name]


def matching(entries: Mapping[str, Entry], pattern: str) -> list[Entry]:
    """Return the entries whose name, source or dialect matches a shell pattern, in the order of the manifest.

    Raises:
        ConfigError: no entry matches.
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
    """Return the file name at the end of a URL.

    Raises:
        ConfigError: the URL does not end with a file name.
    """
    try:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError:  # the host name is malformed
        name = ""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ConfigError(f"{url} does not end with a file name; expected a URL such as https://HOST/FOLDER/NAME.pth")
    return name


def _entry(name: str, values: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]], path: Path) -> Entry:
    """Validate the values of an entry of a manifest and return the entry."""
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
        raise ConfigError(f"{where}: source '{values['source']}' has no entry with licence and page under `sources`")
    try:
        file = values.get("file") or (file_name(values["url"]) if "url" in values else f"{name}.pth")
        checksum = Checksum.parse(values["checksum"]) if "checksum" in values else None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if Path(file).name != file:
        raise ConfigError(f"{where}: file: expected a name without folders, got '{file}'")
    return Entry(**{**source, **values, "name": name, "file": file, "checksum": checksum})
