"""Finds the network in a weight file: the table that holds it, and its tensors by their plain names.

Code bases save networks under many keys (model, state_dict, net, student, ...), inside of wrappers (DataParallel, FSDP,
torch.compile) and as a part of a larger module (Lightning's `model.`, DINO's `backbone.`). A table holds a network if a
dialect recognizes its names once the parts that wrappers insert and, if necessary, a prefix have been removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plsc_mae.errors import CheckpointError, flag
from plsc_mae.weights.dialects import detect
from plsc_mae.weights.dialects.base import Array, Tensors
from plsc_mae.weights.reader import NETWORK_KEYS, Checkpoint

# Parts of names that wrappers insert; no dialect uses them.
WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed, AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_fpw_module",  # FairScale's FSDP
        "_forward_module",  # Lightning Fabric
        "_module",  # Opacus
        "_layers",  # paddle.DataParallel
    }
)
PATCH_EMBEDDING = "patch_embed"  # part of a name in every dialect
# Parts of the paths of flattened parameters -> end of the message about them.
FLATTENED = {
    "flat_param": "FSDP has flattened; save the model with StateDictType.FULL_STATE_DICT",
    "fp32_flat_groups": (
        "DeepSpeed's ZeRO has flattened and divided among its processes; run `python zero_to_fp32.py . merged.bin` in "
        "the checkpoint's folder, where DeepSpeed wrote that script, and give the merged file"
    ),
}
MAX_PREFIX_PARTS, MAX_PREFIXES = 8, 32  # limits for hostile files
MAX_LISTED = 8  # keys in a message


@dataclass(frozen=True)
class _Network:
    """Network in a table of the file; `prefix` was removed from the names of its `tensors`."""

    prefix: str
    tensors: dict[str, Array]


def choose_network(stored: Checkpoint, model_key: str = "", model_prefix: str = "") -> Checkpoint:
    """Return the checkpoint with the network of the file as its `model`.

    The tables `model`, `module` and `state_dict` and then the outermost table are tried in this order, and the first
    that holds a network is taken. If these four hold no network, another table is taken if only one other table holds
    one. Nothing is chosen, and the result has a `problem`, if the table holds several networks or several other tables
    hold one. If no table holds a network, the result need not have a `problem`. Without the two arguments, a file that
    plsc_mae wrote keeps its `model`.

    Args:
        stored: the file as `reader.read_file` returns it.
        model_key: keys separated by "|", such as "model_ema|model". Only the tables under the first of these keys that
            the file has are searched, also in files of plsc_mae. It is ignored for a file without keys.
        model_prefix: prefix of the network's tensor names. It is removed, and tensors without it are ignored.

    Raises:
        CheckpointError: the file has none of the keys, or no name with the prefix.
    """
    tables = _tables(stored)
    if model_key and set(tables) != {""}:
        tables = _below(stored, tables, model_key)
    elif "phase" in stored.meta and not model_prefix:  # plsc_mae wrote it, under its own names
        others = tuple(key for key in tables if key != stored.key and _has_network(tables[key]))
        return dataclasses.replace(stored, dialect=detect(stored.model), others=others)
    if model_prefix:
        tables = _with_prefix_only(stored, tables, model_prefix)
    found = {key: networks for key, table in tables.items() if (networks := _networks(table))}
    key = next((key for key in (*NETWORK_KEYS, "") if key in found), "")
    if key not in found and len(found) == 1:
        key = next(iter(found))
    if key in found and len(found[key]) == 1:
        return _chosen(stored, key, found, tables[key], model_key, model_prefix)
    if model_key or model_prefix:  # keep the named part, although no network was chosen in it
        key = next(iter(tables))
        stored = dataclasses.replace(stored, key=key, model=_without_wrappers(tables[key]))
    return dataclasses.replace(stored, dialect=detect(stored.model), problem=_problem(stored, tables, found))


def _chosen(
    stored: Checkpoint,
    key: str,
    found: Mapping[str, list[_Network]],
    table: Tensors,
    model_key: str,
    model_prefix: str,
) -> Checkpoint:
    """Return the checkpoint with the only network under `key`, and with its `others`, `remark` and `problem`."""
    (network,) = found[key]
    others = tuple(other for other in found if other != key)
    parts = []
    if key not in (*NETWORK_KEYS, "") and not model_key:
        parts.append(f"using the network under '{key}'")
    if network.prefix:
        rest = len(table) - len(network.tensors)
        left_out = f" ({rest} other tensors are left out)" if rest else ""
        parts.append(f"using the tensors whose names start with '{network.prefix}'{left_out}")
    if others:
        parts.append(
            f"{flag('model_key')} can choose {_listed(others)} instead of {f'{key!r}' if key else 'its own tensors'}"
        )
    return dataclasses.replace(
        stored,
        key=key,
        model=network.tensors,
        dialect=detect(network.tensors),
        others=others,
        remark="; ".join(parts),
        problem=_missing_values(network.tensors),
    )


# ------------------------------------------------------------------------------------------------ tables of a file


def _tables(stored: Checkpoint) -> dict[str, dict[str, Array]]:
    """Return the tables of a file with their tensors: {keys joined with "/": {name: array}}."""
    if stored.model and not stored.key:  # one flat table, whose names may contain "/"
        return {"": dict(stored.tensors)}
    tables: dict[str, dict[str, Array]] = {}
    for path, value in stored.tensors.items():
        key, _, name = path.rpartition("/")
        tables.setdefault(key, {})[name] = value
    return tables


def _below(stored: Checkpoint, tables: Mapping[str, dict[str, Array]], model_key: str) -> dict[str, dict[str, Array]]:
    """Return the tables under the first key of `model_key` that the file has, at any depth."""
    for key in model_key.split("|"):
        below = {name: table for name, table in tables.items() if f"/{key}/" in f"/{name}/"}
        if below:
            return below
    networks = [name for name, table in tables.items() if _has_network(table)]
    present = list(dict.fromkeys(name.partition("/")[0] for name in tables if name))
    held = f"; networks are under {_listed(networks)}" if networks and networks != present else ""
    raise CheckpointError(
        f"{stored.path} has no tensors under '{model_key}'; it has tensors under {_listed(present)}{held}; choose one "
        f"with {flag('model_key')}"
    )


def _with_prefix_only(
    stored: Checkpoint, tables: Mapping[str, dict[str, Array]], prefix: str
) -> dict[str, dict[str, Array]]:
    """Return the tables reduced to the tensors whose names start with `prefix`, with the prefix removed."""
    found = {}
    for key, table in tables.items():
        inner = _inner(table, prefix) or _inner(_without_wrappers(table), prefix)
        if inner:
            found[key] = inner
    if not found:
        first = next(iter(stored.model or stored.tensors), "none")
        raise CheckpointError(
            f"{stored.path} has no tensor name that starts with '{prefix}'; the first name is {first}; give its "
            f"prefix with {flag('model_prefix')}"
        )
    return found


def _inner(table: Tensors, prefix: str) -> dict[str, Array]:
    """Return the tensors whose names start with a prefix, with the prefix removed."""
    return {name[len(prefix) :]: value for name, value in table.items() if name.startswith(prefix)}


def _listed(keys: Iterable[str]) -> str:
    """Return at most `MAX_LISTED` keys as text; the empty key of the outermost table becomes "(no key)"."""
    names = [key or "(no key)" for key in keys]
    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


# ------------------------------------------------------------------------------------------------ networks of a table


def _has_network(table: Tensors) -> bool:
    return bool(_networks(table))


def _networks(table: Tensors) -> list[_Network]:
    """Return the networks of a table: the table itself, else those under the shortest prefixes."""
    if not _has_patch_embedding(table):
        return []
    names = _without_wrappers(table)
    found: list[_Network] = []
    for prefix in _prefixes(names):
        if any(prefix.startswith(outer.prefix) for outer in found):
            continue
        inner = _inner(names, prefix)
        if detect(inner):
            found.append(_Network(prefix, inner))
    return found


def _has_patch_embedding(table: Tensors) -> bool:
    return any(PATCH_EMBEDDING in name for name in table)


def _without_wrappers(table: Tensors) -> dict[str, Array]:
    """Remove from the names of a table the parts that wrappers insert; keep all names if two would become equal."""
    stripped = {".".join(part for part in name.split(".") if part not in WRAPPERS): x for name, x in table.items()}
    return stripped if len(stripped) == len(table) else dict(table)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes of the names of patch embeddings, those of fewer parts first; the first one is empty."""
    prefixes: dict[str, int] = {"": 0}
    for name in names:
        if PATCH_EMBEDDING in name and len(prefixes) < MAX_PREFIXES:
            parts = name.split(".", MAX_PREFIX_PARTS)[:-1]
            prefixes |= {".".join(parts[: i + 1]) + ".": i + 1 for i in range(len(parts))}
    return sorted(prefixes, key=lambda prefix: prefixes[prefix])


# ------------------------------------------------------------------------------------------------ files without one


def _problem(stored: Checkpoint, tables: Mapping[str, Tensors], found: Mapping[str, list[_Network]]) -> str:
    """Return, as the end of a sentence, why no network can be chosen; "" if the names are merely unknown."""
    for key in (*NETWORK_KEYS, "", *found):
        if len(found.get(key, ())) > 1:
            names = ", ".join(f"'{network.prefix}'" for network in found[key])
            where = f" under '{key}'" if key else ""
            example = found[key][-1].prefix
            return (
                f"holds several networks{where}, whose names start with {names}; choose one, for example with "
                f"{flag('model_prefix')} {example}"
            )
    if len(found) > 1:
        example = f"{flag('model_key')} {list(found)[-1]}"
        return f"holds several networks, under {_listed(found)}; choose one, for example with {example}"
    for table in tables.values():
        if _has_patch_embedding(table) and (missing := _missing_values(table)):
            return missing
    flattened = (remedy for part, remedy in FLATTENED.items() if any(part in path for path in stored.tensors))
    remedy = next(flattened, "")
    return f"holds parameters without names and shapes, which {remedy}" if remedy else ""


def _missing_values(table: Tensors) -> str:
    """Return the problem of a table with weights of shape [0], as ZeRO stage 3 writes them; "" without such weights."""
    empty = [name for name, value in table.items() if value.shape == (0,) and name.endswith("weight")]
    if not empty:
        return ""
    return (
        f"has weights without values ({len(empty)}, the first {empty[0]}), as DeepSpeed's ZeRO stage 3 writes them: "
        "the values are in the files of its processes; merge these with `python zero_to_fp32.py . merged.bin` in the "
        "checkpoint's folder, where DeepSpeed wrote that script, and give the merged file"
    )
