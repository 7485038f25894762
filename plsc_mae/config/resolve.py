"""From a command line to one resolved config: default < YAML < `-o key=value` < flag, the last flag winning."""

from __future__ import annotations

import argparse
import fnmatch
import logging
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from plsc_mae.config import PHASES, TrainingConfig
from plsc_mae.config.schema import (
    FlagParser,
    Value,
    add_flags,
    build,
    coerce,
    options,
    read_yaml,
    split_override,
    suggest,
    vocabulary,
)
from plsc_mae.errors import ConfigError

logger = logging.getLogger(__name__)


def parse(argv: Sequence[str], configs: Mapping[str, type], *, prog: str, positional: str = "") -> Any:
    """Resolve a command line into a config.

    Args:
        argv: the words after the command.
        configs: the config class of every method the command knows; a command without methods has one entry.
        prog: the command as the user typed it, for help and messages.
        positional: the option that may also be given as a bare word; several in their order, with a space between.

    Raises:
        ConfigError: an unknown option, an option of another method, or a value that cannot be obeyed.
    """
    argv = [_underscored(word) for word in argv]
    early, _ = _source_parser(prog, add_help=False, methods="" not in configs).parse_known_args(argv)
    file_values = read_yaml(early.config) if early.config else {}
    overrides = dict(split_override(text) for text in early.overrides)
    cls = _choose(early, {**file_values, **overrides}, configs)

    parser = _parser(cls, prog, positional)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(_surplus(unknown[0], cls, configs))
    flags = {name: Value(raw, f"--{name}") for name, raw in vars(known).items()}
    for source in ("config", "overrides", "method"):
        flags.pop(source, None)

    values: dict[str, Value] = {}
    for layer in (file_values, overrides, flags):
        values.update(_live(layer, cls, configs))
    return build(cls, values)


def from_mapping(values: Mapping[str, Any], configs: Mapping[str, type], where: str) -> Any:
    """Build a config from plain values, as stored in a checkpoint or a YAML file."""
    raw = {name: Value(value, f"{where}: {name}") for name, value in values.items()}
    cls = _choose(argparse.Namespace(model=None, method=None), raw, configs)
    return build(cls, _live(raw, cls, configs))


def load_config(path: str, **overrides: Any) -> TrainingConfig:
    """Read a training config from a YAML file; its key `phase` says of what kind, pretrain when it is not there.

    Args:
        path: the file.
        overrides: options that replace the file's.

    Raises:
        ConfigError: the file cannot be read or an option in it cannot be obeyed.
    """
    values = {name: value.raw for name, value in read_yaml(path).items()} | overrides
    phase = values.get("phase", "pretrain")
    if phase not in PHASES:
        raise ConfigError(f"{path}: phase: expected one of {', '.join(PHASES)}, got {phase!r}")
    return from_mapping(values, PHASES[phase], path)


def _underscored(word: str) -> str:
    """`--mask-ratio` is `--mask_ratio`; the value after `=` stays as it is."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _source_parser(prog: str, *, add_help: bool, methods: bool) -> FlagParser:
    """Where options come from and which method is meant; parsed first, because they decide the vocabulary."""
    parser = FlagParser(
        prog=prog, add_help=add_help, allow_abbrev=False, usage=f"{prog} [options]", argument_default=argparse.SUPPRESS
    )
    group = parser.add_argument_group("Sources: default < config file < -o < flag")
    group.add_argument("-c", "--config", default="", metavar="FILE", help="YAML file of options")
    group.add_argument(
        "-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one option"
    )
    if methods:
        group.add_argument(
            "--method", default=None, metavar="NAME", help="method whose recipe is meant, if --model does not tell"
        )
    if methods and not add_help:
        parser.add_argument("--model", default=None)
    return parser


def _parser(cls: type, prog: str, positional: str) -> FlagParser:
    parser = _source_parser(prog, add_help=True, methods=bool(getattr(cls, "method", "")))
    parser.description = cls.__doc__
    if positional:
        parser.usage = f"{prog} {positional.upper()} [options]"
        for name in positional.split():
            parser.add_argument(name, nargs="?")
    add_flags(parser, cls)
    _add_hidden_flags(parser, cls)
    return parser


def _add_hidden_flags(parser: FlagParser, cls: type) -> None:
    """Second names, switches that turn an option off, and flags without effect: accepted, not listed by --help."""
    hints = typing.get_type_hints(cls)
    for name, target in getattr(cls, "aliases", {}).items():
        many = "?" if hints[target] is bool else "+" if typing.get_origin(hints[target]) is tuple else None
        const = True if many == "?" else None
        parser.add_argument(f"--{name}", dest=name, nargs=many, const=const, help=argparse.SUPPRESS)
    switches = [name for name, retired in getattr(cls, "retired", {}).items() if not retired.takes_value]
    for name in switches:
        parser.add_argument(f"--{name}", dest=name, action="store_const", const=True, help=argparse.SUPPRESS)
    for name in getattr(cls, "negations", {}):  # MAE-priv's are followed by a word: --use_cls_token False
        parser.add_argument(f"--{name}", dest=name, nargs="?", const=True, help=argparse.SUPPRESS)
    for name, retired in getattr(cls, "retired", {}).items():
        if retired.takes_value:
            parser.add_argument(f"--{name}", dest=name, help=argparse.SUPPRESS)


def _choose(early: argparse.Namespace, values: Mapping[str, Value], configs: Mapping[str, type]) -> type:
    """The config class of the method that the command line means; the first one when nothing tells."""
    if len(configs) == 1 and "" in configs:
        return configs[""]
    method = early.method or coerce(values.get("method", Value("", "")), str)
    if method:
        if method not in configs:
            known = "; known: " + ", ".join(configs)
            raise ConfigError(f"unknown method '{method}'{suggest(method, configs) or known}")
        return configs[method]
    model = early.model or (str(values["model"].raw) if "model" in values else "")
    for cls in configs.values():
        if any(fnmatch.fnmatchcase(model, pattern) for pattern in cls.models):  # type: ignore[attr-defined]
            return cls
    return next(iter(configs.values()))


def _live(layer: Mapping[str, Value], cls: type, configs: Mapping[str, type]) -> dict[str, Value]:
    """Apply aliases, drop and report retired options, refuse unknown ones."""
    names = {option.name for option in options(cls)}
    aliases, retired = getattr(cls, "aliases", {}), getattr(cls, "retired", {})
    negations = getattr(cls, "negations", {})
    live = {}
    for key, value in layer.items():
        name = aliases.get(key, key)
        if name in retired:
            if not retired[name].granted:
                logger.warning("%s has no effect: %s", value.origin, retired[name].reason)
        elif name in names:
            live[name] = value
        elif name in negations:
            live[negations[name]] = Value(not coerce(value, bool), value.origin)
        elif name == "phase":
            _check_phase(value, cls)
        elif name != "method" and name not in getattr(cls, "passed_over", ()):
            raise ConfigError(_unknown(value.origin, key, cls, configs))
    return live


def _check_phase(value: Value, cls: type) -> None:
    """Refuse a file of another kind of training."""
    phase = getattr(cls, "phase", "")
    if phase and value.raw != phase:
        raise ConfigError(f"{value.origin}: these are options of '{value.raw}', and this is '{phase}'")


def _surplus(word: str, cls: type, configs: Mapping[str, type]) -> str:
    if word.startswith("-"):
        return _unknown(word, word.lstrip("-").partition("=")[0], cls, configs)
    return f"unexpected word '{word}'; options are written `--name value`, switches `--name` or `--no_name`"


def _unknown(where: str, name: str, cls: type, configs: Mapping[str, type]) -> str:
    method = getattr(cls, "method", "")
    for other in configs.values():
        if other is not cls and name in {option.name for option in options(other)}:
            return f"{where} belongs to method '{other.method}'; this run is '{method}'"  # type: ignore[attr-defined]
    kind = "flag" if where.startswith("-") and not where.startswith("-o ") else "key"
    return f"unknown {kind} {where!r}{suggest(name, sorted(vocabulary(cls))) or '; --help lists the options'}"
