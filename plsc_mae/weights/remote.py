"""Advice for a URL, a repository of the Hugging Face Hub or a name of the manifest that is given in place of a path."""

from __future__ import annotations

import re
from pathlib import Path

from plsc_mae.weights.manifest import Entry, read_manifest

FOLDER = "weights"  # default of `weights fetch --output_dir`
# pathlib turns the two slashes of a URL into one.
URL = re.compile(r"(?P<scheme>https?|hf|s3|gs|ftp):/{1,2}(?P<rest>.+)", re.IGNORECASE)
HUB_URL = re.compile(r"(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>.+)", re.IGNORECASE)
HUB_PREFIX = re.compile(r"hf[-_]hub:", re.IGNORECASE)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = "https://huggingface.co/{}/resolve/main/model.safetensors"


def fetch_advice(path: str | Path) -> str:
    """Return, as the end of a sentence, advice on a URL or name given in place of a path; "" for an ordinary path."""
    text = HUB_PREFIX.sub("hf://", str(path))
    entries = read_manifest()
    if text in entries:
        return _fetch(entries[text], "a published file")
    match = URL.fullmatch(text)
    if match is None:
        is_repository = REPOSITORY.fullmatch(text) and not Path(text).suffix and not Path(text).parent.exists()
        return _advise_repository(text, entries) if is_repository else ""
    scheme, rest = match["scheme"].lower(), match["rest"]
    url = f"https://{rest}" if scheme in ("http", "https") else f"{scheme}://{rest}"
    for entry in entries.values():
        if entry.url and entry.url == url.partition("?")[0]:
            return _fetch(entry, "a URL")
    hub = HUB_URL.fullmatch(rest) if scheme in ("http", "https") else None
    if scheme == "hf" or (hub and len(hub["rest"].strip("/").split("/")) == 2):
        return _advise_repository((hub["rest"] if hub else rest).strip("/"), entries)
    if scheme in ("http", "https"):
        url = url.replace("/blob/", "/resolve/") if hub else url
        return f"it is a URL: download the file with `plsc-mae weights fetch {url}` and give the path that it prints"
    return "it is a URL: download the file and give its path"


def _advise_repository(text: str, entries: dict[str, Entry]) -> str:
    repository = "/".join(text.split("/")[:2])
    for entry in entries.values():
        if f"huggingface.co/{repository}/" in entry.url:
            return _fetch(entry, "a repository of the Hugging Face Hub")
    return (
        "it looks like a repository of the Hugging Face Hub, which is not downloaded automatically: download it and "
        f"give its folder, or only its weights with `plsc-mae weights fetch {HUB_FILE.format(repository)}`"
    )


def _fetch(entry: Entry, what: str) -> str:
    path = entry.path(FOLDER)
    if path.exists():
        return f"it is {what}, and {path} is already here: give this path"
    if not entry.url:
        return f"it is {what}: get it at {entry.page} and give its path ({entry.by_hand})"
    return f"it is {what}: run `plsc-mae weights fetch {entry.name}` and give {path}"
