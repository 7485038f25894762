"""Text of `plsc-mae COMMAND --help`.

If a config class has an attribute `frequent`, the help shows only the options that it names and those without a group,
and `--help all` shows all options. The help of other commands always shows all options.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from plsc_mae.config.schema import options, without_none

OWN_GROUP = "Options"
_METAVARS = {int: "N", float: "FLOAT", str: "TEXT"}
_NAMES_WIDTH = 30


class Entry(NamedTuple):
    """One option in the help."""

    names: str  # flags and placeholder, for example "--amp, --no_amp"
    text: str  # explanation, default and, if only some methods have the option, their names


class Usage(NamedTuple):
    """A command as the help presents it."""

    prog: str  # the command line up to the options, for example "plsc-mae pretrain"
    summary: str = ""  # one line about the command
    positional: str = ""  # names, separated by spaces, of the options whose values may be given without their flags


def render(
    usage: Usage, configs: Mapping[str, type], sources: Sequence[Entry], *, chosen: str, everything: bool, width: int
) -> str:
    """Return the help of a command.

    Args:
        usage: the command.
        configs: config classes of the command by method.
        sources: the entries of the flags from which options are read, such as --config.
        chosen: the method that the command line or the config file selects; empty if they select none.
        everything: list all options, of all methods unless `chosen` names one.
        width: largest number of columns.
    """
    default = next(iter(configs))
    shown = configs if everything and not chosen else {chosen or default: configs[chosen or default]}
    all_groups = group_options(shown)
    groups = all_groups if everything else _first_screen(shown, all_groups)
    parts = [f"usage: {' '.join([usage.prog, *usage.positional.upper().split()])} [options]"]
    parts += _wrap(_introduction(usage, configs, shown, chosen), width)
    parts += [_section(title, entries, width) for title, entries in groups.items()]
    parts.append(_section("Sources of options; a later one wins: default, config file, -o, flag", sources, width))
    if groups is not all_groups:
        parts += _wrap([f"{usage.prog} --help all lists all options{_of_every_method(configs, chosen)}."], width)
    return "\n\n".join(parts)


def _introduction(usage: Usage, configs: Mapping[str, Any], shown: Mapping[str, Any], chosen: str) -> Iterator[str]:
    if usage.summary:
        yield f"{usage.summary[0].upper()}{usage.summary[1:]}."
    if len(shown) > 1:
        yield (
            f"Options of all methods ({', '.join(shown)}). Options that only some methods have end with those methods "
            "in parentheses; where defaults differ, each is listed with its methods."
        )
    elif len(configs) > 1:
        (method,) = shown
        others = ", ".join(name for name in configs if name != method)
        kind = "" if chosen else ", the default"
        yield (
            f"Method {method}{kind}: {_first_line(configs[method])} Other methods: {others}; --method NAME or one of "
            "their --model names selects them."
        )


def _of_every_method(configs: Mapping[str, type], chosen: str) -> str:
    if len(configs) == 1:
        return ""
    return (
        f" of method {chosen}"
        if chosen
        else ", those of every method included; with --model NAME, only those of its method"
    )


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def group_options(classes: Mapping[str, type]) -> dict[str, list[Entry]]:
    """Group the options of `classes` by heading; an option that methods share with the same text is one entry."""
    found: dict[tuple[str, str, str], dict[str, dataclasses.Field[Any]]] = {}
    hints = {method: typing.get_type_hints(cls) for method, cls in classes.items()}
    for method, cls in classes.items():
        for item in options(cls):
            key = (item.metadata["group"] or OWN_GROUP, item.metadata["help"], names_of(item, hints[method][item.name]))
            found.setdefault(key, {})[method] = item
    groups: dict[str, list[Entry]] = {OWN_GROUP: []}
    for (title, help, names), items in found.items():
        text = describe(help, {method: item.default for method, item in items.items()})
        owners = "" if len(items) == len(classes) else f" ({', '.join(items)})"
        groups.setdefault(title, []).append(Entry(names, text + owners))
    return {title: entries for title, entries in groups.items() if entries}


def _first_screen(shown: Mapping[str, type], groups: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    (cls,) = shown.values()
    if not hasattr(cls, "frequent"):
        return groups
    by_name = {entry.names.split(" ")[0].strip(",-"): entry for entries in groups.values() for entry in entries}
    screen = {OWN_GROUP: groups[OWN_GROUP]} if OWN_GROUP in groups else {}
    return {**screen, "Frequent options": [by_name[name] for name in cls.frequent]}


def names_of(item: dataclasses.Field[Any], hint: Any) -> str:
    """Return the flags of an option and the placeholder of its value."""
    hint = without_none(hint)
    if hint is bool:
        return f"--{item.name}, --no_{item.name}"
    declared = item.metadata["metavar"] or ("DIR" if item.name.endswith("_dir") else "")
    if typing.get_origin(hint) is not tuple:
        return f"--{item.name} {declared or _placeholder(hint)}"
    elements = typing.get_args(hint)
    word = declared or _placeholder(elements[0])
    return f"--{item.name} " + (f"{word} [{word} ...]" if Ellipsis in elements else " ".join([word] * len(elements)))


def _placeholder(hint: Any) -> str:
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return "{" + ",".join(choices) + "}" if choices else _METAVARS[hint]


def describe(help: str, defaults: Mapping[str, Any]) -> str:
    """Return the text of an option followed by its default, or its defaults by method, in brackets.

    A default of None or "" is represented by the brackets at the end of `help`, if there are any.
    """
    described = re.fullmatch(r"(.*\S) \[([^\[\]]+)\]", help)
    text, unset = (described[1], described[2]) if described else (help, "")
    shown = {method: unset if value in (None, "") else _shown(value) for method, value in defaults.items()}
    by_value: dict[str, list[str]] = {}
    for method, value in shown.items():
        by_value.setdefault(value, []).append(method)
    if len(by_value) == 1:
        (value,) = by_value
        return f"{text} [{value}]" if value else text
    listed = "; ".join(f"{', '.join(methods)}: {value or 'none'}" for value, methods in by_value.items())
    return f"{text} [{listed}]"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(title: str, entries: Sequence[Entry], width: int) -> str:
    lines = [f"{title}:"]
    for names, text in entries:
        wrapped = textwrap.wrap(text, max(width - _NAMES_WIDTH, 24), break_on_hyphens=False)
        if len(names) + 4 > _NAMES_WIDTH or not wrapped:
            lines.append(f"  {names}")
        else:
            lines.append(f"  {names}".ljust(_NAMES_WIDTH) + wrapped.pop(0))
        lines += [" " * _NAMES_WIDTH + line for line in wrapped]
    return "\n".join(lines)


def _wrap(paragraphs: Iterable[str], width: int) -> list[str]:
    return [textwrap.fill(text, width, break_on_hyphens=False) for text in paragraphs]
