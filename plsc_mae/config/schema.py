"""How options are declared, read from YAML and flags, and checked. No option is named in this file.

An option is one dataclass field made by `option`. Its name is the YAML key, the flag and the attribute. Values are
coerced by the field's annotation, so that `1e-3`, which YAML reads as a string, is the number it looks like.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from plsc_mae.errors import ConfigError

T = TypeVar("T")
UNIONS = (typing.Union, types.UnionType)
TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"", "none", "null", "~"}


class Value(NamedTuple):
    """A raw value and where it was written, for messages."""

    raw: Any
    origin: str


class Retired(NamedTuple):
    """A historical flag that is accepted although it has nothing to act on here.

    Attributes:
        reason: why it has no effect; told as a warning.
        takes_value: whether a value follows.
        granted: whether it asks for what is done anyway, which needs no warning.
    """

    reason: str
    takes_value: bool = True
    granted: bool = False


def option(default: Any, help: str, *, within: str = "") -> Any:
    """Declare one option.

    Args:
        default: the value when nobody sets it.
        help: one line, with the unit.
        within: the allowed interval of a number, in mathematical notation such as "(0, 1)" or "[0, inf)".
    """
    return field(default=default, metadata={"help": help, "within": within})


def redefault(base: type, name: str, default: Any) -> Any:
    """Re-declare an inherited option with another default: the preset of a method or phase."""
    inherited = next(item for item in options(base) if item.name == name)
    return field(default=default, metadata=inherited.metadata)


def options(cls: Any) -> list[dataclasses.Field[Any]]:
    """The options a config class declares or inherits."""
    return [f for f in dataclasses.fields(cls) if "help" in f.metadata]


def vocabulary(cls: Any) -> frozenset[str]:
    """Every name that a config class understands: its options, their second names and opposites."""
    names = {item.name for item in options(cls)}
    return frozenset(names.union(getattr(cls, "aliases", {}), getattr(cls, "negations", {})))


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


# ------------------------------------------------------------------------------------------------ coercion


def coerce(value: Value, hint: Any) -> Any:
    """Turn a raw value from YAML or the command line into the type of its annotation.

    Raises:
        ConfigError: naming where the value stands, the value and the expected type.
    """
    raw, _ = value
    origin = typing.get_origin(hint)
    if origin in UNIONS:
        if raw is None or (isinstance(raw, str) and raw.lower() in NONE):
            return None
        return coerce(value, _without_none(hint))
    if origin is Literal:
        choices = typing.get_args(hint)
        if raw not in choices:
            raise _wrong(value, "one of " + ", ".join(map(str, choices)), suggest(str(raw), choices))
        return raw
    if origin is tuple:
        return _coerce_tuple(value, hint)
    return _coerce_scalar(value, hint)


def _without_none(hint: Any) -> Any:
    """`T` of `T | None`; any other annotation as it is."""
    if typing.get_origin(hint) in UNIONS:
        return next(member for member in typing.get_args(hint) if member is not type(None))
    return hint


def _coerce_tuple(value: Value, hint: Any) -> tuple[Any, ...]:
    raw, where = value
    items: list[Any] = []
    for item in raw if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]:
        items += item.replace(",", " ").split() if isinstance(item, str) else [item]
    element, *rest = typing.get_args(hint)
    if rest and rest[0] is not Ellipsis and len(items) != 1 + len(rest):
        raise _wrong(value, f"{1 + len(rest)} values")
    if not items:
        raise _wrong(value, "at least one value")
    return tuple(coerce(Value(item, where), element) for item in items)


def _coerce_scalar(value: Value, hint: Any) -> Any:
    raw = value.raw
    if hint is bool:
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, (str, int)) and str(raw).lower() in TRUE | FALSE:
            return str(raw).lower() in TRUE
        raise _wrong(value, "true or false")
    if hint is str:
        if raw is None:
            return ""
        if isinstance(raw, (str, int, float)) and not isinstance(raw, bool):
            return str(raw)
        raise _wrong(value, "text")
    if isinstance(raw, (str, int, float)) and not isinstance(raw, bool):
        try:
            number = hint(raw) if isinstance(raw, str) or hint is float else raw
            if isinstance(number, hint):
                return number
        except ValueError:
            pass
    raise _wrong(value, {int: "a whole number", float: "a number"}[hint])


def _wrong(value: Value, expected: str, hint: str = "") -> ConfigError:
    raw = " ".join(map(str, value.raw)) if isinstance(value.raw, list) else value.raw
    return ConfigError(f"{value.origin}: expected {expected}, got {raw!r}{hint}")


def check_interval(value: Any, within: str, where: str) -> None:
    """Raise ConfigError unless every number in `value` lies in the interval written as `within`."""
    low, high = (float(bound) for bound in within[1:-1].split(","))
    for number in value if isinstance(value, tuple) else (value,):
        above = number > low if within[0] == "(" else number >= low
        below = number < high if within[-1] == ")" else number <= high
        if not (above and below):
            raise ConfigError(f"{where} must lie in {within}, got {number}")


def build(cls: type[T], values: Mapping[str, Value]) -> T:
    """Make a config of `cls` from raw values; names have been checked by the caller.

    Raises:
        ConfigError: a value of the wrong type, outside its interval, or at odds with another.
    """
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for item in options(cls):
        if item.name not in values:
            continue
        value = values[item.name]
        kwargs[item.name] = coerce(value, hints[item.name])
        if item.metadata["within"] and kwargs[item.name] is not None:
            check_interval(kwargs[item.name], item.metadata["within"], value.origin)
    return cls(**kwargs)


# ------------------------------------------------------------------------------------------------ sources


def read_yaml(path: str) -> dict[str, Value]:
    """Read a flat mapping of options from a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a flat mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lines of `option: value`, got {type(content).__name__}")
    for key, value in content.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: '{key}' holds nested options; write them flat, one `option: value` a line")
    return {str(key): Value(value, f"{path}: {key}") for key, value in content.items()}


def split_override(text: str) -> tuple[str, Value]:
    """Split one `-o key=value`; a dotted key such as `optim.lr` counts by its last part."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"-o {text}: expected key=value")
    return key.split(".")[-1], Value(value, f"-o {key}")


class FlagParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError where argparse would print its usage and exit."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise ConfigError with argparse's message."""
        raise ConfigError(message.replace("argument ", "", 1))


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add one flag per option, grouped by the class that declares it. Absent flags stay absent."""
    hints = typing.get_type_hints(cls)
    groups: dict[str, Any] = {}
    for item in options(cls):
        owner = _declaring_class(cls, item.name)
        if owner.__name__ not in groups:
            title = (owner.__doc__ or "").strip().splitlines()[0].rstrip(".")
            groups[owner.__name__] = parser.add_argument_group(title)
        _add_flag(groups[owner.__name__], item, hints[item.name])


def _declaring_class(cls: type, name: str) -> type:
    return [base for base in cls.__mro__ if name in getattr(base, "__annotations__", {})][-1]


def _add_flag(group: Any, item: dataclasses.Field[Any], hint: Any) -> None:
    hint, default = _without_none(hint), item.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    help = item.metadata["help"] + ("" if default in (None, "") else f" [{shown}]").replace("%", "%%")
    flag = f"--{item.name}"
    if hint is bool:
        group.add_argument(flag, dest=item.name, action="store_const", const=True, help=help)
        group.add_argument(
            f"--no_{item.name}", dest=item.name, action="store_const", const=False, help=argparse.SUPPRESS
        )
        return
    many = typing.get_origin(hint) is tuple
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
    metavar = "{" + ",".join(choices) + "}" if choices else item.name.rsplit("_", 1)[-1].upper()
    group.add_argument(flag, dest=item.name, nargs="+" if many else None, metavar=metavar, help=help)


def plain_values(config: Any) -> dict[str, Any]:
    """Every option of a config as plain data, in declaration order, led by method and phase if it has them."""
    values = {kind: getattr(config, kind) for kind in ("method", "phase") if getattr(config, kind, "")}
    values |= {item.name: getattr(config, item.name) for item in options(type(config))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_line(config: Any) -> str:
    """All options in one line of text, as `key=value`."""
    return " ".join(f"{name}={value!r}" for name, value in plain_values(config).items())


def to_yaml(config: Any, header: str = "") -> str:
    """Write a config as YAML that `read_yaml` takes back."""
    return header + yaml.safe_dump(plain_values(config), sort_keys=False, default_flow_style=None, allow_unicode=True)
