"""Load foreign weights into our networks and write ours under foreign names, with a report of what matched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from paddle import nn

from plsc_mae.errors import CheckpointError, ConfigError, UserError
from plsc_mae.weights.dialects import DIALECTS, detect, find_dialect
from plsc_mae.weights.dialects.base import Array, Dialect, NumHeads, Tensors
from plsc_mae.weights.dialects.facebook import published_heads
from plsc_mae.weights.reader import Checkpoint, read_file
from plsc_mae.weights.write import write_file

Resize = Callable[[str, Array, list[int]], Array | None]
Source = str | Path | Checkpoint | Mapping[str, Array]


@dataclass
class LoadReport:
    """What happened to each tensor: ours by our names, theirs (unexpected) by theirs.

    `resized` names position tables that the file holds for another grid: the network keeps its own fixed ones, and
    learned ones are resized.
    """

    dialect: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched ({self.dialect})"]
        for kind in ("missing", "unexpected", "resized"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} (first: {names[0]})")
        return ", ".join(parts)


def read(path: str | Path) -> Checkpoint:
    """Read any weight file safely, without torch and without running anything in it, and name its dialect."""
    checkpoint = read_file(path)
    return dataclasses.replace(checkpoint, dialect=detect(checkpoint.model))


def select(checkpoint: Checkpoint, model_key: str = "", model_prefix: str = "") -> Checkpoint:
    """Take another part of a file as the network than the one found by content.

    Args:
        checkpoint: the file as read.
        model_key: keys of the file, separated by "|", of which the first that is there is taken, as "model_ema|model";
            a file without keys is taken whole. Empty: what was found by content.
        model_prefix: what the network's names start with in there; it is taken off and other tensors are left out.

    Raises:
        CheckpointError: the file has none of the keys, or no name with the prefix.
    """
    tensors = checkpoint.model
    present = list(dict.fromkeys(name.partition("/")[0] for name in checkpoint.tensors if "/" in name))
    if model_key and present:
        key = next((key for key in model_key.split("|") if key in present), None)
        if key is None:
            raise CheckpointError(
                f"{checkpoint.path} has no tensors under '{model_key}'; it has some under {', '.join(present)}"
            )
        tensors = _below(checkpoint.tensors, f"{key}/")
        if all(name.startswith("module.") for name in tensors):  # as the reader does
            tensors = _below(tensors, "module.")
    if model_prefix and not _below(tensors, model_prefix):
        first = next(iter(tensors), "none")
        raise CheckpointError(
            f"{checkpoint.path} has no tensor whose name starts with '{model_prefix}'; the first is {first}"
        )
    tensors = _below(tensors, model_prefix)
    return dataclasses.replace(checkpoint, model=tensors, dialect=detect(tensors))


def _below(tensors: Tensors, prefix: str) -> dict[str, Array]:
    """The tensors whose names start with a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def load(
    model: nn.Layer,
    source: Source,
    dialect: str | None = None,
    *,
    prefix: str = "",
    resize: Resize | None = None,
) -> LoadReport:
    """Load weights into a network, converting names and layouts.

    A fixed position table of another grid size is not loaded: the network's own is exact at its size.

    Args:
        model: one of our networks.
        source: a file, a read checkpoint, or {foreign name: array}.
        dialect: whose names and layouts; recognized from the tensors when None.
        prefix: of the network's names within the one that the file holds, as "encoder." for an encoder alone.
        resize: what may make a tensor of another shape fit: (our name, value in our layout, wanted shape) -> value, or
            None where it cannot.

    Raises:
        ConfigError: an unknown dialect.
        CheckpointError: no dialect recognizes the tensors, one has another shape, or nothing matches.
    """
    tensors, where = _tensors(source)
    rules = find_dialect(dialect) if dialect else recognize(tensors, where)
    tensors = _decode(rules, tensors, _heads_of(model, rules, prefix), where)
    report, values, misfits = _match(model, tensors, rules, prefix, resize)
    if misfits:
        raise CheckpointError(
            f"{where}: {misfits[0]}; it is another model or was made with other sizes ({len(misfits)} tensors are of "
            f"other shapes, {report})"
        )
    if not values:
        raise CheckpointError(f"{where}: no tensor matches the network in dialect '{rules.name}'")
    for name, tensor in model.state_dict().items():
        if name in values:
            tensor.set_value(np.ascontiguousarray(values[name], dtype=np.float32))
    return report


def _match(
    model: nn.Layer, tensors: Tensors, rules: Dialect, prefix: str, resize: Resize | None
) -> tuple[LoadReport, dict[str, Array], list[str]]:
    """Find the network's tensors in a file: the report, values by our names, and what has another shape."""
    report, linear = LoadReport(rules.name), linear_weights(model)
    fixed = {name for name, _ in model.named_buffers() if name.endswith("pos_embed")}
    remaining = set(tensors)
    values, misfits = {}, []
    for name, tensor in model.state_dict().items():
        foreign = rules.foreign_name(prefix + name)
        if foreign not in tensors:
            report.missing.append(name)
            continue
        remaining.discard(foreign)
        value = rules.convert(np.asarray(tensors[foreign]), is_linear_weight=name in linear)
        if list(value.shape) == list(tensor.shape):
            values[name] = value
            report.matched.append(name)
        elif name in fixed:
            report.resized.append(name)
        elif resize is not None and (resized := resize(name, value, list(tensor.shape))) is not None:
            values[name] = resized
            report.resized.append(name)
        else:
            misfits.append(
                f"'{foreign}' has shape {list(value.shape)} in our layout, but the network's {name} has "
                f"{list(tensor.shape)}"
            )
    report.unexpected = sorted(name for name in remaining if not name.startswith(tuple(rules.copies)))
    return report, values, misfits


def decoded(stored: Checkpoint, num_heads: int | None = None, decoder_num_heads: int | None = None) -> Checkpoint:
    """Bring a file's network into the base naming of its dialect, of which sizes and options can be read off.

    Args:
        stored: the file as read.
        num_heads: of the encoder, where its width is not a published one and the order of rows depends on it.
        decoder_num_heads: likewise, of the decoder.

    Raises:
        ConfigError: the number of heads is needed and not known.
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
    """Rewrite tensors into the base naming.

    Raises:
        CheckpointError: their shapes do not go together.
    """
    if rules.decode is None:
        return tensors
    try:
        return rules.decode(tensors, heads)
    except UserError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"{where}: its tensors have shapes that no network of '{rules.name}' has: {error}"
        ) from None


def export(
    model: nn.Layer, dialect: str, values: Mapping[str, Array] | None = None, *, prefix: str = ""
) -> dict[str, Array]:
    """Give a network's tensors under foreign names and in foreign layouts.

    Args:
        model: one of our networks.
        dialect: whose names and layouts.
        values: gradients or others to export instead of the weights, keyed by our parameter names.
        prefix: of the network's names within the one that the dialect's files hold, as "encoder." for an encoder alone.

    Raises:
        ConfigError: an unknown dialect, or one that is read only.
    """
    rules, linear = find_dialect(dialect), linear_weights(model)
    if rules.decode is not None and rules.encode is None:
        raise ConfigError(f"dialect '{dialect}' is of old files, which are read and not written")
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
    """Write a network's weights into a file that another code base loads.

    Args:
        model: one of our networks; a bare encoder is written as the encoder of a whole network.
        path: the suffix tells the format, see `weights.write`.
        dialect: whose names and layouts. Its files hold the tensors under its key, as "model".

    Raises:
        ConfigError: an unknown dialect or suffix, or one that has no place for a part of this network.
        CheckpointError: the file cannot be written.
    """
    rules = find_dialect(dialect)
    prefix = "encoder." if "patch_embed.proj.weight" in model.state_dict() else ""
    if not _fits(model, rules, prefix):
        writable = [other for other in DIALECTS.values() if other.decode is None or other.encode is not None]
        names = ", ".join(other.name for other in writable if _fits(model, other, prefix)) or "none that is known"
        raise ConfigError(f"dialect '{dialect}' has no place for all tensors of this network; these have: {names}")
    write_file(path, export(model, dialect, prefix=prefix), rules.key, {"format": "pt"})


def _fits(model: nn.Layer, rules: Dialect, prefix: str) -> bool:
    """Whether a dialect's networks have the tensors of ours."""
    names = [rules.foreign_name(prefix + name) for name in model.state_dict()]
    return rules.holds(names) and rules.recognizes(export(model, rules.name, prefix=prefix))


def _heads_of(model: nn.Layer, rules: Dialect, prefix: str) -> NumHeads:
    """The heads of a network's attentions by the names of their projections in the base naming."""
    heads = {
        rules.foreign_name(f"{prefix}{name}.qkv.{kind}"): layer.num_heads
        for name, layer in model.named_sublayers()
        if hasattr(layer, "qkv")
        for kind in ("weight", "bias")
    }
    # The order of rows is of no matter in tensors that the network does not have.
    return lambda name, _width: heads.get(name, 1)


def linear_weights(model: nn.Layer) -> set[str]:
    """Names of the weights of linear layers: the ones other frameworks store transposed."""
    layers = model.named_sublayers(include_self=True)
    return {f"{name}.weight".lstrip(".") for name, layer in layers if isinstance(layer, nn.Linear)}


def _tensors(source: Source) -> tuple[Tensors, str]:
    if isinstance(source, (str, Path)):
        source = read_file(source)
    if isinstance(source, Checkpoint):
        return source.model, str(source.path)
    return source, "the given tensors"


def recognize(tensors: Tensors, where: str) -> Dialect:
    """Find the dialect of tensors.

    Raises:
        CheckpointError: no dialect has such names.
    """
    if name := detect(tensors):
        return find_dialect(name)
    first = ", ".join(sorted(tensors)[:3])
    raise CheckpointError(f"{where}: no known dialect has such names ({first}, ...); name it with dialect=")
