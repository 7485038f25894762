"""Loads weight files of any dialect into our networks, and exports our weights under foreign names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from paddle import nn

from plsc_mae.errors import CheckpointError, ConfigError, UserError
from plsc_mae.weights.dialects import DIALECTS, detect, find_dialect
from plsc_mae.weights.dialects.base import Array, Dialect, NumHeads, Tensors
from plsc_mae.weights.dialects.facebook import published_heads
from plsc_mae.weights.finite import require_finite, require_floats
from plsc_mae.weights.reader import Checkpoint, read_file
from plsc_mae.weights.unwrap import choose_network
from plsc_mae.weights.write import write_file
from plsc_mae.wording import counted

POSITION_TABLE = "pos_embed"  # end of the names of our tables of absolute positions
logger = logging.getLogger(__name__)

Resize = Callable[[str, Array, list[int]], Array | None]
Source = str | Path | Checkpoint | Mapping[str, Array]


@dataclass
class LoadReport:
    """Result of loading weights.

    Attributes:
        dialect: naming of the file.
        matched: names of our tensors that the file has in the network's shape.
        missing: names of our tensors that the file does not contain.
        unexpected: names, in the base naming of the dialect, of the file's tensors that the network does not have,
            except the second copies that `Dialect.copies` describes.
        resized: names of our tensors that the file has for another grid or number of channels. Either the file's values
            were converted, or the network kept its own fixed position table.
    """

    dialect: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{counted(len(self.matched), 'tensor')} matched ({self.dialect})"]
        for kind in ("missing", "unexpected", "resized"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} (first: {names[0]})")
        return ", ".join(parts)


def read(path: str | Path, model_key: str = "", model_prefix: str = "") -> Checkpoint:
    """Read a weight file, find its network and detect its dialect, without torch and without running code from it.

    Args:
        path: the file, or the folder of a checkpoint.
        model_key: key of the network in the file, see `unwrap.choose_network`; empty to find it by its content.
        model_prefix: prefix of the network's tensor names; empty to find it by content, too.

    Returns:
        The content. If it has no usable network, `problem` gives the reason, or `dialect` is empty.

    Raises:
        CheckpointError: the file cannot be read, or lacks the key or the prefix.
    """
    return choose_network(read_file(path), model_key, model_prefix)


def read_network(path: str | Path, model_key: str = "", model_prefix: str = "") -> Checkpoint:
    """Read a weight file as `read` does, log its `remark`, and raise if it has a `problem`.

    A file whose only fault is that no dialect recognizes it has no `problem` and is returned; `load` refuses it.

    Raises:
        CheckpointError: the file cannot be read, lacks the key or the prefix, or has a `problem`.
    """
    stored = read(path, model_key, model_prefix)
    require_network(stored)
    if stored.remark:
        logger.info("%s: %s", path, stored.remark)
    return stored


def require_network(stored: Checkpoint) -> None:
    """Raise CheckpointError if a file has a `problem`, for example several networks."""
    if stored.problem:
        raise CheckpointError(f"{stored.path} {stored.problem}")


def load(
    model: nn.Layer,
    source: Source,
    dialect: str | None = None,
    *,
    prefix: str = "",
    resize: Resize | None = None,
    dry_run: bool = False,
) -> LoadReport:
    """Load weights into a network, with their names and layouts converted, and return a report.

    If the file's position table is for another grid and `resize` does not convert it, a network with a fixed position
    table keeps its own, which is exact.

    Args:
        model: one of our networks.
        source: a file or folder, a checkpoint that was read, or {foreign name: array}.
        dialect: naming and layout of the source; None detects it from the tensors.
        prefix: beginning of our names for `model`'s tensors within the file's network, such as "encoder." to load an
            encoder alone; empty if `model` is that whole network.
        resize: adapts position tables and tensors of another shape: (our name, value in our layout, required shape) ->
            value, or None if that is impossible. Position tables of the same shape are passed too, because two grids
            can have the same number of patches.
        dry_run: compare names, shapes and types only, and leave the network as it is.

    Raises:
        ConfigError: the dialect is unknown.
        CheckpointError: the file cannot be read or used, no dialect recognizes the tensors, a tensor has another shape
            and cannot be resized, no tensor matches, a tensor to load does not have a floating-point type, or a value
            to load is not finite. Values are not examined if `dry_run` or `source.any_values` is true.
    """
    if isinstance(source, (str, Path)):
        source = read_network(source)
    tensors, where = (source.model, str(source.path)) if isinstance(source, Checkpoint) else (source, "the given table")
    rules = find_dialect(dialect) if dialect else recognize(tensors, where)
    tensors = _decode(rules, tensors, _heads_of(model, rules, prefix), where)
    report, values, misfits = _match(model, tensors, rules, prefix, resize)
    if misfits:
        raise CheckpointError(
            f"{where}: {misfits[0]}; choose the model and sizes that the file was made with, which `plsc-mae weights "
            f"inspect FILE` prints ({counted(len(misfits), 'tensor')} of other shapes, {report})"
        )
    if not values:
        raise CheckpointError(
            f"{where}: no tensor matches the network in dialect '{rules.name}'; check the file and the model"
        )
    require_floats(values, where)
    if dry_run:
        return report
    if not (isinstance(source, Checkpoint) and source.any_values):
        require_finite(values, where, _remedy(source))
    for name, tensor in model.state_dict().items():
        if name in values:
            tensor.set_value(np.ascontiguousarray(values[name], dtype=np.float32))
    return report


def _match(
    model: nn.Layer, tensors: Tensors, rules: Dialect, prefix: str, resize: Resize | None
) -> tuple[LoadReport, dict[str, Array], list[str]]:
    """Match `tensors`, in base naming, with the network's.

    Returns:
        (report, {our name: value to load}, descriptions of tensors whose shapes differ and cannot be resized).
    """
    report = LoadReport(rules.name)
    linear = linear_weights(model)
    fixed = {name for name, _ in model.named_buffers() if name.endswith(POSITION_TABLE)}
    remaining = set(tensors)
    values = {}
    misfits = []
    for name, tensor in model.state_dict().items():
        foreign = rules.foreign_name(prefix + name)
        if foreign not in tensors:
            report.missing.append(name)
            continue
        remaining.discard(foreign)
        value = rules.convert(np.asarray(tensors[foreign]), is_linear_weight=name in linear)
        same = list(value.shape) == list(tensor.shape)
        adapted = None
        if resize is not None and (not same or name.endswith(POSITION_TABLE)):
            adapted = resize(name, value, list(tensor.shape))
        if same and (adapted is None or adapted is value):
            values[name] = value
            report.matched.append(name)
        elif adapted is not None:
            values[name] = adapted
            report.resized.append(name)
        elif name in fixed:
            report.resized.append(name)
        else:
            misfits.append(
                f"'{foreign}' has shape {list(value.shape)} in our layout, but the network's {name} has "
                f"{list(tensor.shape)}"
            )
    report.unexpected = sorted(name for name in remaining if not name.startswith(tuple(rules.copies)))
    return report, values, misfits


def decoded(stored: Checkpoint, num_heads: int | None = None, decoder_num_heads: int | None = None) -> Checkpoint:
    """Return a file with its network in the base naming of its dialect, which the functions that infer sizes need.

    A file already in the base naming, or that no dialect recognizes, is returned unchanged.

    Args:
        stored: the file as read.
        num_heads: number of heads of the encoder; needed only if the dialect orders rows by head and no published
            encoder has this width.
        decoder_num_heads: the same for the decoder.

    Raises:
        ConfigError: the number of heads is needed but unknown.
        CheckpointError: the shapes of the tensors fit no network of the dialect.
    """
    name = detect(stored.model)
    rules = find_dialect(name) if name else None
    if rules is None or rules.decode is None:
        return stored

    def heads(attention: str, width: int) -> int | None:
        given = decoder_num_heads if attention.startswith("decoder_") else num_heads
        return given or published_heads(attention, width)

    tensors = dict(_decode(rules, stored.model, heads, str(stored.path)))
    return dataclasses.replace(stored, model=tensors, dialect=detect(tensors))


def _decode(rules: Dialect, tensors: Tensors, heads: NumHeads, where: str) -> Tensors:
    """Rewrite tensors into the base naming of a dialect, if necessary; inconsistent shapes are a CheckpointError."""
    if rules.decode is None:
        return tensors
    try:
        return rules.decode(tensors, heads)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{where}: the shapes of its tensors fit no network of dialect '{rules.name}': {error}"
        ) from None


def export(
    model: nn.Layer, dialect: str, values: Mapping[str, Array] | None = None, *, prefix: str = ""
) -> dict[str, Array]:
    """Return a network's tensors under foreign names and in foreign layouts.

    Args:
        model: one of our networks.
        dialect: naming and layout of the result.
        values: arrays to export instead of the weights, such as gradients, by our parameter names. Only weights get the
            second copies that the dialect's files contain (`Dialect.copies`).
        prefix: beginning of our names for `model`'s tensors within the network of the dialect's files, such as
            "encoder." for an encoder alone; empty if `model` is that whole network.

    Raises:
        ConfigError: the dialect is unknown or read-only.
    """
    rules = find_dialect(dialect)
    linear = linear_weights(model)
    if rules.decode is not None and rules.encode is None:
        raise ConfigError(f"dialect '{dialect}' can be read but not written; choose another one")
    whole = values is None
    if values is None:
        values = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = {
        rules.foreign_name(prefix + name): rules.convert(np.asarray(value), is_linear_weight=name in linear)
        for name, value in values.items()
    }
    if rules.encode is not None:
        arrays = rules.encode(arrays, _heads_of(model, rules, prefix))
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    for copy, original in rules.copies.items() if whole else ():
        copied = {copy + name[len(original) :]: value for name, value in arrays.items() if name.startswith(original)}
        arrays = copied | arrays
    return arrays


def save(model: nn.Layer, path: str | Path, dialect: str = "plsc_mae") -> None:
    """Write a network's weights to a file that another code base can load.

    Args:
        model: one of our networks; an encoder alone is written as the encoder of a whole network.
        path: destination; its suffix determines the format, see `weights.write`.
        dialect: determines names and layouts and, in formats that have keys, the key of the tensors, such as "model".

    Raises:
        ConfigError: the dialect or suffix is unknown, or the dialect or the format cannot represent the network.
        CheckpointError: the file cannot be written.
    """
    rules = find_dialect(dialect)
    prefix = "encoder." if "patch_embed.proj.weight" in model.state_dict() else ""
    if not _fits(model, rules, prefix):
        writable = [other for other in DIALECTS.values() if other.decode is None or other.encode is not None]
        names = ", ".join(other.name for other in writable if _fits(model, other, prefix)) or "none"
        raise ConfigError(
            f"dialect '{dialect}' cannot represent all tensors of this network; dialects that can: {names}"
        )
    write_file(path, export(model, dialect, prefix=prefix), rules.key, {"format": "pt"})


def _fits(model: nn.Layer, rules: Dialect, prefix: str) -> bool:
    """Return True if a dialect can represent all tensors of the network."""
    names = [rules.foreign_name(prefix + name) for name in model.state_dict()]
    encoder = model if prefix else getattr(model, "encoder", None)
    rows = getattr(encoder, "prefix_positions", 1)  # rows of the position table that precede the patches' rows
    if not rules.newer_parts and rows != int(getattr(encoder, "cls_token", True) is not None):
        return False
    return rules.holds(names) and rules.recognizes(export(model, rules.name, prefix=prefix))


def _heads_of(model: nn.Layer, rules: Dialect, prefix: str) -> NumHeads:
    """Return a function from an attention projection's name in the base naming to its number of heads."""
    heads = {
        rules.foreign_name(f"{prefix}{name}.qkv.{kind}"): layer.num_heads
        for name, layer in model.named_sublayers()
        if hasattr(layer, "qkv")
        for kind in ("weight", "bias")
    }
    # Tensors that the network does not have are not loaded, so the order of their rows is irrelevant.
    return lambda name, _width: heads.get(name, 1)


def linear_weights(model: nn.Layer) -> set[str]:
    """Return the names of the weights of linear layers, which torch stores transposed."""
    layers = model.named_sublayers(include_self=True)
    return {f"{name}.weight".lstrip(".") for name, layer in layers if isinstance(layer, nn.Linear)}


def _remedy(source: Checkpoint | Mapping[str, Array]) -> str:
    """Return the advice for a file with values that are not finite."""
    others = source.others if isinstance(source, Checkpoint) else ()
    remedy = "take an earlier checkpoint of the run"
    return f"{remedy}, or other weights of the file with --model_key {others[0]}" if others else remedy


def recognize(tensors: Tensors, where: str) -> Dialect:
    """Return the dialect of the tensors.

    Raises:
        CheckpointError: no dialect recognizes the names.
    """
    if name := detect(tensors):
        return find_dialect(name)
    names = f"these names ({', '.join(sorted(tensors)[:3])}, ...)" if tensors else "the names in it"
    raise CheckpointError(
        f"{where}: no known dialect has {names}; if the network is another part of the file, choose it with "
        "--model_key or --model_prefix (`plsc-mae weights inspect --tensors` lists the names), else take another file"
    )
