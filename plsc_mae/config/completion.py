"""Completion of command lines in a shell, by the package argcomplete: commands, flags, choices, recipes and files."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from plsc_mae.config.recipes import recipe_names
from plsc_mae.config.schema import options, without_none


class Completed(typing.NamedTuple):
    """A command to complete."""

    configs: Mapping[str, type]  # its config classes by method
    positional: str  # names, separated by spaces, of the options whose values may be given without their flags
    parallel: bool  # True if `launch` may start it


def completion_parser(commands: Mapping[str, Completed], words: Collection[str]) -> argparse.ArgumentParser:
    """Return a parser from which argcomplete reads the possible next words.

    Args:
        commands: all commands by name, in one or two words.
        words: the words on the command line; only commands whose first word is among them get their flags.
    """
    parser = argparse.ArgumentParser("plsc-mae", add_help=False)
    parser.add_argument("--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    _add_commands(parser, commands, words)
    return parser


def _add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Completed], words: Collection[str]) -> None:
    group = parser.add_subparsers()
    families: dict[str, Any] = {}
    for name, command in commands.items():
        first, _, second = name.partition(" ")
        if second and first not in families:
            families[first] = group.add_parser(first, add_help=False).add_subparsers()
        own = (families[first] if second else group).add_parser(second or first, add_help=False)
        if first in words:
            _add_flags(own, command)
            if first == "launch":
                _add_commands(own, {name: other for name, other in commands.items() if other.parallel}, words)


def _add_flags(parser: argparse.ArgumentParser, command: Completed) -> None:
    """Add the flags of all methods of a command, and its positional words."""
    _complete(parser.add_argument("-c", "--config"), _recipes_and_files)
    parser.add_argument("-o")
    parser.add_argument("--help", nargs="?", choices=["all"])
    hints = typing.get_type_hints(next(iter(command.configs.values())))
    for name in command.positional.split():
        action = parser.add_argument(name, nargs="*" if typing.get_origin(hints[name]) is tuple else "?")
        if name == "recipe":
            _complete(action, _recipes)
    if "" not in command.configs:
        parser.add_argument("--method", choices=list(command.configs))
    known: set[str] = set()
    for cls in command.configs.values():
        hints = typing.get_type_hints(cls)
        for item in options(cls):
            if item.name in known:
                continue
            known.add(item.name)
            hint = without_none(hints[item.name])
            if hint is bool:
                parser.add_argument(f"--{item.name}", action="store_true")
                parser.add_argument(f"--no_{item.name}", action="store_true")
            else:
                choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
                many = "+" if typing.get_origin(hint) is tuple else None
                parser.add_argument(f"--{item.name}", choices=choices, nargs=many)


def _complete(action: argparse.Action, completer: Any) -> None:
    action.completer = completer  # type: ignore[attr-defined]  # argcomplete reads this attribute


def _recipes(prefix: str, **_: Any) -> Sequence[str]:
    return [name for name in recipe_names() if name.startswith(prefix)]


def _recipes_and_files(prefix: str, **_: Any) -> Sequence[str]:
    from argcomplete.completers import FilesCompleter

    return [*_recipes(prefix), *FilesCompleter(["yaml", "yml"])(prefix)]
