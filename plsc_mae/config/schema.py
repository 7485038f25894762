"""Declaration, coercion and validation of options. This file names no option.

An option is one dataclass field made by `option`. The field's name is also the YAML key and the flag. Raw values are
converted to the type in the field's annotation: YAML reads `1e-3` as a string, and a `float` field makes it a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from plsc_mae.config.synonyms import hint_at_choice
from plsc_mae.errors import ConfigError

T = TypeVar("T")
UNIONS = (typing.Union, types.UnionType)
TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"", "none", "null", "~"}


class Value(NamedTuple):
    """A raw value and, for messages, the place it comes from."""

    raw: Any
    origin: str


class Retired(NamedTuple):
    """A flag of another code base that is accepted and has no effect."""

    reason: str  # the explanation in the warning
    takes_value: bool = True  # True if the flag is followed by a value
    granted: bool = False  # True if the flag asks for the default behavior; no warning is logged then


def option(default: Any, help: str, *, within: str = "", metavar: str = "", group: str = "") -> Any:
    """Declare one option.

    Args:
        default: the value if nothing sets the option.
        help: one line, with the unit. `--help` appends the default. The meaning of a default of None or "" is part of
            the text, in brackets at its end: `validation images [DATA_PATH/val]`.
        within: the interval of the allowed numbers in mathematical notation, for example "(0, 1)" or "[0, inf)".
        metavar: the placeholder of the value in the help; derived from the type or the name if empty.
        group: the heading in the help.
    """
    return field(default=default, metadata={"help": help, "within": within, "metavar": metavar, "group": group})


def in_group(title: str) -> Callable[..., Any]:
    """Return a variant of `option` for options under the heading `title` of the help."""
    return functools.partial(option, group=title)


class Checked:
    """A config that cannot be built from options that contradict each other."""

    def _contradictions(self) -> Iterator[str]:
        """Yield a sentence for each contradiction between options, and for each required option without a value."""
        yield from ()

    def __post_init__(self) -> None:
        refuse_mistakes(self._contradictions())


def refuse_mistakes(mistakes: Iterable[str]) -> None:
    """Raise one ConfigError with all mistakes, each a sentence of its own, if there are any."""
    if found := tuple(mistakes):
        raise ConfigError(*found)


def set_defaults(cls: type, defaults: Mapping[str, Any]) -> None:
    """Change the defaults of options that `cls` inherits. Must be called before `dataclass` processes `cls`.

    Raises:
        TypeError: `defaults` names an option that `cls` does not inherit.
    """
    inherited = {
        item.name: item
        for base in reversed(cls.__mro__[1:])
        if dataclasses.is_dataclass(base)
        for item in options(base)
    }
    hints = typing.get_type_hints(cls)
    for name, default in defaults.items():
        if name not in inherited:
            raise TypeError(f"{cls.__name__}.defaults: '{name}' is not an inherited option{suggest(name, inherited)}")
        cls.__annotations__[name] = hints[name]
        setattr(cls, name, field(default=default, metadata=inherited[name].metadata))


def options(cls: Any) -> list[dataclasses.Field[Any]]:
    """Return the options that a config class declares or inherits."""
    return [f for f in dataclasses.fields(cls) if "help" in f.metadata]


def vocabulary(cls: Any) -> frozenset[str]:
    """Return the names of the options of a config class, their aliases and their negations."""
    names = {item.name for item in options(cls)}
    return frozenset(names.union(getattr(cls, "aliases", {}), getattr(cls, "negations", {})))


def suggest(name: str, known: Iterable[str], dashes: str = "") -> str:
    """Return `; did you mean 'x'?` for the closest known name, or an empty string if no name is close.

    `dashes` stand before the known name in the text.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{dashes}{close[0]}'?" if close else ""


# ------------------------------------------------------------------------------------------------ coercion


def coerce(value: Value, hint: Any) -> Any:
    """Convert a raw value to the type of an annotation.

    Raises:
        ConfigError: the value does not fit the annotation.
    """
    raw, _ = value
    origin = typing.get_origin(hint)
    if origin in UNIONS:
        words = raw if isinstance(raw, list) else [raw]  # a list is the words after a flag that takes several
        if raw is None or (len(words) == 1 and isinstance(words[0], str) and words[0].lower() in NONE):
            return None
        return coerce(value, without_none(hint))
    if origin is Literal:
        choices = typing.get_args(hint)
        if raw not in choices:
            hint = hint_at_choice(str(raw), choices) or suggest(str(raw), choices)
            raise _wrong(value, "one of " + ", ".join(map(str, choices)), hint)
        return raw
    if origin is tuple:
        return _coerce_tuple(value, hint)
    return _coerce_scalar(value, hint)


def without_none(hint: Any) -> Any:
    """Return `T` for `T | None`, and an annotation that is not a union unchanged."""
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
        except (ValueError, OverflowError):
            pass
    raise _wrong(value, {int: "a whole number", float: "a number"}[hint])


def _wrong(value: Value, expected: str, hint: str = "") -> ConfigError:
    raw = " ".join(map(str, value.raw)) if isinstance(value.raw, list) else value.raw
    return ConfigError(f"{value.origin}: expected {expected}, got {raw!r}{hint}")


def check_interval(value: Any, within: str, where: str) -> None:
    """Raise ConfigError unless every number in `value` lies in the interval `within`, for example "(0, 1]"."""
    low, high = (float(bound) for bound in within[1:-1].split(","))
    for number in value if isinstance(value, tuple) else (value,):
        above = number > low if within[0] == "(" else number >= low
        below = number < high if within[-1] == ")" else number <= high
        if not (above and below):
            raise ConfigError(f"{where} must lie in {within}, got {number}")


def convert(cls: type, values: Mapping[str, Value]) -> dict[str, Any]:
    """Convert raw values by name to those of the options of `cls`; other names are left out.

    Raises:
        ConfigError: values are invalid; the message names all of them.
    """
    hints, converted, wrong = typing.get_type_hints(cls), {}, list[str]()
    for item in options(cls):
        if item.name not in values:
            continue
        value = values[item.name]
        try:
            converted[item.name] = coerce(value, hints[item.name])
            if item.metadata["within"] and converted[item.name] is not None:
                check_interval(converted[item.name], item.metadata["within"], value.origin)
        except ConfigError as error:
            wrong += error.args
    refuse_mistakes(wrong)
    return converted


def build(cls: type[T], values: Mapping[str, Value]) -> T:
    """Build a config of class `cls` from raw values by name; other names are ignored.

    Raises:
        ConfigError: values are invalid or missing, or contradict each other.
    """
    return cls(**convert(cls, values))


# ------------------------------------------------------------------------------------------------ output


def plain_values(config: object) -> dict[str, Any]:
    """Return every option of a config as plain data in declaration order, after `method` and `phase` if it has them."""
    values = {kind: getattr(config, kind) for kind in ("method", "phase") if getattr(config, kind, "")}
    values |= {item.name: getattr(config, item.name) for item in options(type(config))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_line(config: object, *, changed_only: bool = False, without: Collection[str] = ()) -> str:
    """Return `plain_values` as one line of `key=value` pairs.

    Args:
        config: the config.
        changed_only: whether to leave out `method`, `phase` and the options that have their default.
        without: names to leave out.
    """
    values = {name: value for name, value in plain_values(config).items() if name not in without}
    if changed_only:
        defaults = {item.name: item.default for item in options(type(config))}
        values = {name: values[name] for name in values if name in defaults and getattr(config, name) != defaults[name]}
    return " ".join(f"{name}={value!r}" for name, value in values.items())


def to_yaml(config: object, header: str = "") -> str:
    """Return a config as YAML text that `read_yaml` reads back, after the comment lines `header`."""
    return header + yaml.safe_dump(plain_values(config), sort_keys=False, default_flow_style=None, allow_unicode=True)
