"""Resolution of a command line into one config: default < YAML file < `-o key=value` < flag."""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
import re
import shutil
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from plsc_mae.config import PHASES, TrainingConfig
from plsc_mae.config.help import Entry, Usage, render
from plsc_mae.config.recipes import find_config
from plsc_mae.config.schema import (
    Value,
    build,
    coerce,
    convert,
    options,
    refuse_mistakes,
    suggest,
    vocabulary,
    without_none,
)
from plsc_mae.config.synonyms import hint_at_option
from plsc_mae.errors import ConfigError
from plsc_mae.file_kinds import require_text

logger = logging.getLogger(__name__)

_SOURCES = [
    Entry("-c CONFIG, --config CONFIG", "YAML file of options, or a recipe's name; `plsc-mae configs` lists them"),
    Entry("-o KEY=VALUE", "one option; may be repeated"),
]
_HELP = "; --help lists the options"
_FLAG = re.compile(r"-(?![\d.])")  # a number may be negative
_METHOD = Entry("--method NAME", "method, if --model does not determine it")


def parse(
    argv: Sequence[str], configs: Mapping[str, type], *, prog: str, positional: str = "", summary: str = ""
) -> Any:
    """Resolve a command line into a config.

    Args:
        argv: the words after the command.
        configs: the config class of every method of the command, the default method first; a command without methods
            has one entry, "".
        prog: the command, for example "plsc-mae pretrain", for the help and the log.
        positional: names, separated by spaces, of the options whose values may be given without their flags, in order.
        summary: one line about the command, for the help.

    Raises:
        ConfigError: the config file cannot be used, or an option or value is unknown, invalid, missing, or contradicts
            another one.
        SystemExit: with code 0 after `--help`.
    """
    argv = [_underscored(word) for word in argv]
    early, _ = _source_parser(prog, configs, early=True).parse_known_args(argv)
    file_values: Mapping[str, Value] = read_yaml(early.config) if early.config else {}
    overrides = dict(split_override(text) for text in early.overrides)
    named = _named_method(early, {**file_values, **overrides}, configs)
    for i, word in enumerate(argv):
        if word in ("-h", "--help", "--help=all"):
            everything = word == "--help=all" or argv[i + 1 : i + 2] == ["all"]
            _show_help(configs, Usage(prog, summary, positional), named, everything=everything)
            raise SystemExit(0)
    cls = configs[named or next(iter(configs))]

    known, unknown = _parser(cls, configs, prog, positional).parse_known_args(argv)
    flags = {name: Value(raw, f"--{name}") for name, raw in vars(known).items()}
    if unknown:
        raise ConfigError(*_surplus(unknown, cls, configs), *_invalid(flags, cls))
    for source in ("config", "overrides", "method"):
        flags.pop(source, None)

    file_values = _without_training_options(file_values, cls, early.config, prog)
    return _layered(cls, configs, file_values, overrides, flags)


def from_options(given: Mapping[str, Any], configs: Mapping[str, type], *, prog: str) -> Any:
    """Resolve options given as Python values into a config, as `parse` resolves a command line.

    Args:
        given: values by option name; `config` is a YAML file of options or the name of a recipe, `method` selects the
            method. Paths, and numbers of NumPy and other array libraries, are accepted in place of text and numbers.
        configs: see `parse`.
        prog: the function's name, for the log.

    Raises:
        ConfigError: see `parse`.
    """
    own = {name: Value(_plain(value), name) for name, value in given.items()}
    path = str(own.pop("config", Value("", "")).raw or "")
    file_values: Mapping[str, Value] = read_yaml(path) if path else {}
    early = argparse.Namespace(model=None, method=None)
    cls = configs[_named_method(early, {**file_values, **own}, configs) or next(iter(configs))]
    return _layered(cls, configs, _without_training_options(file_values, cls, path, prog), own)


def _plain(value: Any) -> Any:
    """Return a path as text, numbers of NumPy or another array library as Python's, and other values unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _layered(
    cls: type, configs: Mapping[str, type], file_values: Mapping[str, Value], *later: Mapping[str, Value]
) -> Any:
    """Build a config from the values of a file and of later sources; a later source takes precedence."""
    values: dict[str, Value] = {}
    mistakes: list[str] = []
    for layer in (file_values, *later):
        live = _live(layer, cls, configs)
        values.update(_one_rate(live, cls, mistakes, is_file=layer is file_values))
    try:
        config = _build(cls, values)
    except ConfigError as error:
        raise ConfigError(*mistakes, *error.args) from None
    refuse_mistakes(mistakes)
    _require_value_per_channel(config, values)
    return config


def _require_value_per_channel(config: Any, values: Mapping[str, Value]) -> None:
    """Raise ConfigError if the number of given means or deviations contradicts the given channels.

    The channels may also come from a checkpoint; `plsc_mae.loading.pixel_settings` checks the number then.
    """
    source = next((name for name in ("bands", "in_chans") if name in values and getattr(config, name)), "")
    if not source:
        return
    channels = config.in_chans or len(config.bands)
    for name in values.keys() & {"mean", "std"}:
        given = getattr(config, name)
        if given is not None and len(given) not in (1, channels):
            raise ConfigError(
                f"{values[name].origin} has {len(given)} values, but {values[source].origin} sets the number of "
                f"channels to {channels}; expected one value per channel, or one for all: give --mean and --std for "
                "these channels, or unset both by -o mean=null -o std=null"
            )


def from_mapping(values: Mapping[str, Any], configs: Mapping[str, type], where: str) -> Any:
    """Build a config from plain values, for example those stored in a checkpoint.

    Messages name `where` as the source of the values; `configs` is that of `parse`.

    Raises:
        ConfigError: an option or value is unknown, invalid, missing, or contradicts another one.
    """
    raw = {name: Value(value, f"{where}: {name}") for name, value in values.items()}
    cls = configs[_named_method(argparse.Namespace(model=None, method=None), raw, configs) or next(iter(configs))]
    return _build(cls, _live(raw, cls, configs))


def load_config(path: str, **overrides: Any) -> TrainingConfig:
    """Read a training config from a YAML file. Its key `phase` selects the kind of training; the default is pretrain.

    Args:
        path: the file, or the name of a recipe.
        overrides: options that replace those of the file.

    Raises:
        ConfigError: the file cannot be used, or an option or value is unknown, invalid, missing, or contradicts
            another one.
    """
    values = {name: value.raw for name, value in read_yaml(path).items()} | overrides
    phase = values.get("phase", "pretrain")
    return from_mapping(values, PHASES[_known_phase(phase, path)], path)


def _build(cls: type, values: Mapping[str, Value]) -> Any:
    """Build a config; defaults that the values rule out are adapted, and the log says so if that changes the run."""
    if not issubclass(cls, TrainingConfig):
        return build(cls, values)
    given = convert(cls, values)
    adapted = cls.adapted_defaults(given)
    for _, reason in adapted.values():
        if reason:
            logger.info(reason)
    fitting = {name: Value(value, name) for name, (value, _) in adapted.items()}
    return cls(**given | convert(cls, fitting), given=frozenset(given))


def _one_rate(live: dict[str, Value], cls: type, mistakes: list[str], *, is_file: bool) -> dict[str, Value]:
    """Return the options of one source; if they have `blr` but not `lr`, they unset the `lr` of earlier sources.

    The options are returned unchanged if the default of `blr` is None. A file may have both options, as the config.yaml
    of a run with `lr` does; then `lr` applies. In other sources both are a contradiction, which is added to `mistakes`.
    """
    if getattr(cls, "blr", None) is None:
        return live
    lr, blr = (live.get(name, Value(None, "")) for name in ("lr", "blr"))
    absolute, base = (coerce(value, float | None) is not None for value in (lr, blr))
    if absolute and base and not is_file:
        mistakes.append(
            f"{lr.origin} {lr.raw} and {blr.origin} {blr.raw} contradict each other: lr is the learning rate, blr is a "
            "rate per 256 images that is scaled with the batch; give one of them"
        )
    elif absolute and base and coerce(blr, float | None) != getattr(cls, "blr", None):
        logger.warning(
            "%s is not used: %s %s applies, which is not scaled with the batch", blr.origin, lr.origin, lr.raw
        )
    return {**live, "lr": Value(None, "")} if base and not absolute else live


# ------------------------------------------------------------------------------------------------ sources


def read_yaml(path: str) -> dict[str, Value]:
    """Read a flat mapping of options from a YAML file.

    Args:
        path: the file, or the name of a recipe (`plsc_mae.config.recipes`); an existing file takes precedence.

    Raises:
        ConfigError: there is no such file or recipe, or the file cannot be read, is not UTF-8, is not YAML, or is not a
            flat mapping.
    """
    try:
        file = find_config(path)
        require_text(file, path, "a YAML file of options", ConfigError)
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} has the byte 0x{error.object[error.start]:02x} at position {error.start}, which is not UTF-8; "
            "save it as UTF-8"
        ) from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        # dates that do not exist, tags such as `!!bool x`, numbers to base 60, thousands of brackets
        raise ConfigError(
            f"{path} is not valid YAML: a date, number or tag cannot be read; put text in quotation marks"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lines of `option: value`, got {type(content).__name__}")
    for key, value in content.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: '{key}' has nested options; write one `option: value` per line")
    return {str(key): Value(value, f"{path}: {key}") for key, value in content.items()}


def split_override(text: str) -> tuple[str, Value]:
    """Return (key, value) of the `key=value` of one `-o`; of a dotted key such as `optim.lr`, only the last part.

    Raises:
        ConfigError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"-o {text}: expected key=value")
    return key.split(".")[-1], Value(value, f"-o {key}")


def _without_training_options(values: Mapping[str, Value], cls: type, path: str, prog: str) -> Mapping[str, Value]:
    """Return the values of a config file without training options that this command does not have.

    Commands whose class has a `training_file` accept a config file of training and use the options they share with
    it, as the tools of MAE-priv do.
    """
    phase = getattr(cls, "training_file", "")
    if not phase:
        return values
    if "phase" in values:
        phase = _known_phase(values["phase"].raw, path)
    training: set[str] = {"phase", "method"}
    for config in PHASES[phase].values():
        training |= vocabulary(config) | config.retired.keys()
    own, unknown = vocabulary(cls), []
    for name, value in values.items():
        if name not in own | training:
            hint = hint_at_option(name, own | training) or suggest(name, sorted(own | training))
            unknown.append(f"unknown key {value.origin!r}{hint}")
    if unknown:
        raise ConfigError(*unknown)
    ignored = [name for name in values if name in training - own]
    if listed := [name for name in ignored if name not in ("phase", "method")]:
        logger.info("%s: ignored options of training that %s does not use: %s", path, prog, ", ".join(listed))
    return {name: value for name, value in values.items() if name not in ignored}


def _known_phase(phase: Any, path: str) -> str:
    if phase not in tuple(PHASES):  # it may be a list, which has no hash
        raise ConfigError(f"{path}: phase: expected one of {', '.join(PHASES)}, got {phase!r}")
    return str(phase)


# ------------------------------------------------------------------------------------------------ command line


class FlagParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError, where argparse prints its usage and exits."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise ConfigError with argparse's message."""
        raise ConfigError(message.replace("argument ", "", 1))


def _underscored(word: str) -> str:
    """Replace dashes in a flag by underscores: `--mask-ratio` is `--mask_ratio`. A value after `=` stays unchanged."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _source_parser(prog: str, configs: Mapping[str, type], *, early: bool) -> FlagParser:
    """Return a parser of -c, -o and, in commands with methods, --method; the early one also reads --model.

    The early parser runs before the parser of all flags, because the flags depend on the method.
    """
    parser = FlagParser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-c", "--config", default="")
    parser.add_argument("-o", dest="overrides", action="append", default=[])
    if "" not in configs:
        parser.add_argument("--method", default=None)
        if early:
            parser.add_argument("--model", default=None)
    return parser


def _parser(cls: type, configs: Mapping[str, type], prog: str, positional: str) -> FlagParser:
    """Return a parser of -c, -o, --method and the options of a class; options not given are absent from its result."""
    parser = _source_parser(prog, configs, early=False)
    hints = typing.get_type_hints(cls)
    for name in positional.split():
        parser.add_argument(name, nargs="*" if typing.get_origin(hints[name]) is tuple else "?")
    for item in options(cls):
        hint = without_none(hints[item.name])
        if hint is bool:
            parser.add_argument(f"--{item.name}", dest=item.name, action="store_const", const=True)
            parser.add_argument(f"--no_{item.name}", dest=item.name, action="store_const", const=False)
        else:
            parser.add_argument(f"--{item.name}", nargs="+" if typing.get_origin(hint) is tuple else None)
    _add_historical_flags(parser, cls, hints)
    return parser


def _add_historical_flags(parser: FlagParser, cls: type, hints: Mapping[str, Any]) -> None:
    """Add the aliases, negations and retired flags, which keep commands of other code bases valid; help omits them."""
    for name, target in getattr(cls, "aliases", {}).items():
        many = "?" if hints[target] is bool else "+" if typing.get_origin(hints[target]) is tuple else None
        parser.add_argument(f"--{name}", nargs=many, const=True if many == "?" else None)
    for name in getattr(cls, "negations", {}):  # MAE-priv adds a word: --use_cls_token False
        parser.add_argument(f"--{name}", nargs="?", const=True)
    for name, retired in getattr(cls, "retired", {}).items():
        if retired.takes_value:
            parser.add_argument(f"--{name}")
        else:
            parser.add_argument(f"--{name}", action="store_const", const=True)


def _show_help(configs: Mapping[str, type], usage: Usage, named: str, *, everything: bool) -> None:
    sources = [*_SOURCES, _METHOD] if "" not in configs else _SOURCES
    width = min(shutil.get_terminal_size().columns, 120)
    print(render(usage, configs, sources, chosen=named, everything=everything, width=width))


def _named_method(early: argparse.Namespace, values: Mapping[str, Value], configs: Mapping[str, type]) -> str:
    """Return the method that `--method`, else the key `method`, else the model's name selects; "" if none does."""
    if "" in configs:
        return ""
    method = early.method or coerce(values.get("method", Value("", "")), str)
    if method:
        if method not in configs:
            known = "; known: " + ", ".join(configs)
            raise ConfigError(f"unknown method '{method}'{suggest(method, configs) or known}")
        return str(method)
    model = early.model or (str(values["model"].raw) if "model" in values else "")
    for name, cls in configs.items():
        if any(fnmatch.fnmatchcase(model, pattern) for pattern in cls.models):  # type: ignore[attr-defined]
            return name
    return ""


# ------------------------------------------------------------------------------------------------ names


def _live(layer: Mapping[str, Value], cls: type, configs: Mapping[str, type]) -> dict[str, Value]:
    """Return the options of one source by field name, without retired ones; raise ConfigError for unknown names."""
    names = {option.name for option in options(cls)}
    aliases, retired = getattr(cls, "aliases", {}), getattr(cls, "retired", {})
    negations = getattr(cls, "negations", {})
    live, unknown = {}, []
    for key, value in layer.items():
        name = aliases.get(key, key)
        if name in retired:
            if not retired[name].granted:
                logger.warning("%s has no effect: %s", value.origin, retired[name].reason)
        elif name in names:
            live[name] = value
        elif name in negations:
            live[negations[name]] = Value(not coerce(value, bool), value.origin)
        elif name == "phase" and "" not in configs:
            _check_phase(value, cls)
        elif name != "method" or "" in configs:
            unknown.append(_unknown(value.origin, key, cls, configs))
    if unknown:
        raise ConfigError(*unknown)
    return live


def _check_phase(value: Value, cls: type) -> None:
    """Raise ConfigError if a source's key `phase` names another kind of training than the command's."""
    phase = getattr(cls, "phase", "")
    if phase and value.raw != phase:
        raise ConfigError(f"{value.origin}: the file has options of '{value.raw}', but this command is '{phase}'")


def _surplus(words: Sequence[str], cls: type, configs: Mapping[str, type]) -> list[str]:
    """Return sentences about words that no option accepts: the first one, if it is no flag, and all flags.

    Words after an unknown flag are its values.
    """
    flags = [word for word in words if _FLAG.match(word)]
    texts = [_unknown(word, word.lstrip("-").partition("=")[0], cls, configs) for word in dict.fromkeys(flags)]
    if not _FLAG.match(words[0]):
        usage = "options are written `--name value`, switches `--name` or `--no_name`"
        if os.path.isfile(words[0]):  # probably from a pattern of the shell, such as *.jpg
            usage = "a path option takes one path: for several files give their folder, or a list file"
        texts.insert(0, f"unexpected word '{words[0]}'; {usage}")
    return texts


def _invalid(flags: Mapping[str, Value], cls: type) -> tuple[str, ...]:
    """Return sentences about the invalid values of flags."""
    try:
        convert(cls, flags)
    except ConfigError as error:
        return error.args
    return ()


def _unknown(where: str, name: str, cls: type, configs: Mapping[str, type]) -> str:
    method = getattr(cls, "method", "")
    for other in configs.values():
        if other is not cls and name in {option.name for option in options(other)}:
            return f"{where} belongs to method '{other.method}'; this run is '{method}'"  # type: ignore[attr-defined]
    kind, dashes = ("flag", "--") if where.startswith("-") and not where.startswith("-o ") else ("key", "")
    known = vocabulary(cls)
    hint = hint_at_option(name, known, dashes) or _hint_at_phase(name, cls) or suggest(name, sorted(known), dashes)
    return f"unknown {kind} {where!r}{hint or _HELP}"


def _hint_at_phase(name: str, cls: type) -> str:
    """Return the end of a message about an option that only other kinds of training have, else ""."""
    own = getattr(cls, "phase", "")
    owners = [phase for phase in PHASES if any(name in vocabulary(config) for config in PHASES[phase].values())]
    return f"; it is an option of {' and '.join(owners)}, not of {own}" if own and owners and own not in owners else ""
