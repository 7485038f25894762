"""`plsc-mae weights list|fetch|inspect|diff`: list, download, describe and compare weight files."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plsc_mae import weights
from plsc_mae.commands.inspection import Inspection, TensorLine, inspect_file, tensor_lines
from plsc_mae.config.weights import WeightsDiffConfig, WeightsFetchConfig, WeightsInspectConfig, WeightsListConfig
from plsc_mae.console import printed_json
from plsc_mae.errors import ConfigError
from plsc_mae.loading.contents import CLASSIFIER, ENCODER, base_of, kind_of
from plsc_mae.loading.networks import our_tensors
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import require_network
from plsc_mae.weights.difference import Difference, compare
from plsc_mae.weights.fetch import fetch
from plsc_mae.weights.manifest import Checksum, Entry, file_name, find_entry, matching, read_manifest
from plsc_mae.weights.remote import fetch_advice
from plsc_mae.wording import counted

WIDTH = 120

# --------------------------------------------------------------------------------------------------- list and fetch


def run_list(config: WeightsListConfig) -> None:
    """Print the published files that match the pattern of `config`.

    Raises:
        ConfigError: no published file matches.
    """
    entries = matching(read_manifest(), config.pattern)
    here = [_is_here(entry, config.output_dir) for entry in entries]
    if config.json:
        listed = [dataclasses.asdict(entry) for entry in entries]
        for values, entry, state in zip(listed, entries, here, strict=True):
            values |= {"checksum": str(entry.checksum or ""), "here": state, "path": str(entry.path(config.output_dir))}
        _print_json(listed)
        return
    titles = ("name", "here", "size", "dialect", "licence", "accuracy", "good for")
    rows = [
        (e.name, state, _size(e.bytes), e.dialect, e.licence, e.accuracy or "-", e.good_for)
        for e, state in zip(entries, here, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if len(entries) == 1:
        (entry,) = entries
        print(f"\n{entry.network}, of {entry.source}: {entry.page}")
        for line in (entry.note, entry.by_hand and f"cannot be fetched by a program: {entry.by_hand}"):
            if line:
                print(line)


def run_fetch(config: WeightsFetchConfig) -> None:
    """Download a file unless it exists, and print the result of checking its content.

    Raises:
        ConfigError: no file has that name, a program cannot fetch it, or the URL or the checksum is malformed.
        CheckpointError: the file cannot be downloaded or written, or its content differs from the checksum or size.
    """
    checksum, size = Checksum.parse(config.checksum) if config.checksum else None, None
    entries = read_manifest()
    is_url = config.name.startswith(("http://", "https://"))
    if config.name not in entries and not is_url and (advice := fetch_advice(config.name)):
        raise ConfigError(f"cannot fetch {config.name}: {advice}")
    if "://" in config.name:
        url, path = config.name, Path(config.output_dir) / file_name(config.name)
    else:
        entry = find_entry(entries, config.name)
        url, path = entry.url, entry.path(config.output_dir)
        if not url:
            raise ConfigError(
                f"{entry.name} cannot be fetched by a program: {entry.by_hand}; get it at {entry.page} and save it as "
                f"{path}"
            )
        print(f"{entry.name}: {entry.network}, licence {entry.licence}, {entry.page}", flush=True)
        checksum, size = checksum or entry.checksum, entry.bytes
    done = fetch(url, path, checksum=checksum, size=size, retries=config.retries, timeout=config.timeout)
    print(f"{done.path} {'has arrived' if done.downloaded else 'is already here'}: {done.verdict}")


def _is_here(entry: Entry, folder: str) -> str:
    path = entry.path(folder)
    if path.exists():
        return "yes"
    return "partly" if path.with_name(f"{path.name}.partial").exists() else "no"


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


# --------------------------------------------------------------------------------------------------- inspect


def run_inspect(config: WeightsInspectConfig) -> None:
    """Print the content of a file as text or, with --json, as JSON.

    Raises:
        CheckpointError: the file cannot be read, or lacks --model_key or --model_prefix.
    """
    stored = weights.read(config.path, config.model_key, config.model_prefix)
    flags = "".join(
        f" --{name} {getattr(config, name)}" for name in ("model_key", "model_prefix") if getattr(config, name)
    )
    found = inspect_file(stored, config.num_heads, config.decoder_num_heads, flags)
    lines = list(tensor_lines(stored)) if config.tensors else []
    if config.json:
        content = dataclasses.asdict(found)
        if config.tensors:
            content["table"] = [dataclasses.asdict(line) for line in lines]
        _print_json(content)
        return
    print("\n".join(_described(found)))
    if lines:
        print("\n" + "\n".join(_tabulated(lines)))


def _described(found: Inspection) -> list[str]:
    """Format the facts about a file as lines of text."""
    dialect = f", dialect {found.dialect}" if found.dialect else ""
    types = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    facts = {
        "holds": found.holds,
        "place": found.place,
        **{part: _sizes(sizes) for part, sizes in found.sizes.items()},
        "trained for": found.target,
        "network": f"{counted(found.tensors, 'tensor')} ({types}), {found.values:,} values"
        if found.tensors
        else "no tensors",
        "not finite": ", ".join(f"{counted(count, 'value')} of {name}" for name, count in found.not_finite.items()),
        "beside it": ", ".join(
            f"{key} ({counted(count, 'tensor')})" if count else key for key, count in found.beside.items()
        ),
        "epoch": "" if found.epoch is None else str(found.epoch),
        "options": ", ".join(f"{key}={value}" for key, value in found.options.items()),
        "not stored": "; ".join(found.unknown),
    }
    lines = [f"{found.path}: {found.format}, {_size(found.bytes)}{dialect}"]
    for title, text in facts.items():
        if text:
            lines += textwrap.wrap(f"  {title:<12}{text}", WIDTH, subsequent_indent=" " * 14)
    for title, commands in {"good for": found.uses, "not for": found.misfits}.items():
        room = max(map(len, commands), default=0)
        lines += [f"  {title}"] * bool(commands) + [f"    {use:<{room}}  {text}" for use, text in commands.items()]
    return lines


def _sizes(sizes: Mapping[str, Any]) -> str:
    """Format the sizes of a part of the network, such as its encoder, as text."""
    words = {
        "embed_dim": "width",
        "patch_size": "patch",
        "num_heads": "heads",
        "img_size": "images",
        "in_chans": "channels",
    }
    shown = []
    for name, value in sizes.items():
        word = words.get(name, name.replace("_", " "))
        if value is None:
            shown.append(f"{word} not stored")
        elif isinstance(value, tuple):
            shown.append(f"{word} {' x '.join(map(str, value))}")
        elif isinstance(value, bool):
            shown.append(word if value else f"no {word}")
        else:
            shown.append(f"{word} {value}")
    return ", ".join(shown)


def _tabulated(lines: list[TensorLine]) -> list[str]:
    width = max(len(line.name) for line in lines)
    shapes = [" x ".join(map(str, line.shape)) or "scalar" for line in lines]
    room = max(map(len, shapes))
    table = [f"{'tensor':<{width}}  {'shape':<{room}}  type      {'mean':>11}  {'std':>11}  NaN"]
    for line, shape in zip(lines, shapes, strict=True):
        mean, std = ("-" if value is None else f"{value:.4g}" for value in (line.mean, line.std))
        table.append(f"{line.name:<{width}}  {shape:<{room}}  {line.dtype:<8}  {mean:>11}  {std:>11}  {line.nan}")
    return table


# --------------------------------------------------------------------------------------------------- diff


def run_diff(config: WeightsDiffConfig) -> int:
    """Compare two files, print their differences and return the exit code: 1 if they differ, else 0.

    Raises:
        CheckpointError: a file cannot be read, or the networks cannot be compared.
        ConfigError: the number of heads is needed and unknown.
    """
    a, b = _read_both(config)
    if config.everything:
        tables, how = (a.tensors, b.tensors), "all tensors"
    elif a.dialect == b.dialect or not (a.dialect and b.dialect):
        tables, how = (
            (a.model, b.model),
            f"tensors of the networks as stored ({a.dialect or b.dialect or 'no dialect'})",
        )
    else:
        kinds = {kind_of(base_of(stored)) for stored in (a, b)}
        kind = kinds.pop() if len(kinds) == 1 else ENCODER
        heads = (config.num_heads, config.decoder_num_heads)
        tables = our_tensors(a, kind, *heads), our_tensors(b, kind, *heads)
        what = {ENCODER: "encoders", CLASSIFIER: "classifiers"}.get(kind, "autoencoders")
        how = f"tensors of the {what} in the names of plsc_mae ({a.dialect} and {b.dialect})"
    found = compare(*tables)
    same = found.within(config.tolerance)
    if config.json:
        _print_json({"a": config.a, "b": config.b, "how": how, "same": same, **dataclasses.asdict(found)})
    else:
        print("\n".join(_compared(found, config, how, same=same)))
    return 0 if same else 1


def _read_both(config: WeightsDiffConfig) -> list[Checkpoint]:
    """Read both files and allow values that are not finite."""
    both = []
    for i, path in enumerate((config.a, config.b)):
        key, prefix = (
            values[min(i, len(values) - 1)] if values else "" for values in (config.model_key, config.model_prefix)
        )
        stored = weights.read(path, key, prefix)
        if not config.everything:
            require_network(stored)
        both.append(dataclasses.replace(stored, any_values=True))
    return both


def _compared(found: Difference, config: WeightsDiffConfig, how: str, *, same: bool) -> list[str]:
    """Format the result of a comparison as lines of text."""
    count = len(found.identical) + len(found.compared)
    lines = [f"{how}: {len(found.identical)} of {count} with one name and shape are bit-identical"]
    kinds = {
        f"only in {config.a}": found.only_a,
        f"only in {config.b}": found.only_b,
        "of other shapes": [f"{name}: {list(x)} and {list(y)}" for name, (x, y) in found.other_shapes.items()],
        "not bit-identical, with their largest difference": [
            f"{each.name}: {each.max_abs:.3g} (relative {each.relative:.2g}), {each.differing} of {each.size} values"
            for each in found.compared
        ],
    }
    for title, names in kinds.items():
        if names:
            lines += [f"{len(names)} {title}", *(f"  {line}" for line in names[: config.max_lines])]
            if len(names) > config.max_lines:
                lines.append(f"  and {len(names) - config.max_lines} more")
    within = f" within {config.tolerance:g}" if config.tolerance else ""
    return [*lines, f"the same{within}" if same else f"not the same{within}"]


def _print_json(content: Any) -> None:
    """Print plain data as JSON; infinities and NaN, which JSON lacks, become text."""

    def plain(value: Any) -> Any:
        """Return `value` in the types of JSON; other objects become text."""
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

    print(printed_json(plain(content), indent=1))
