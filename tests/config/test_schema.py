"""Options as they are declared, coerced, checked and written."""

from __future__ import annotations

import dataclasses
import typing
from typing import ClassVar, Literal

import pytest
import yaml

from plsc_mae.cli import COMMANDS
from plsc_mae.config import CONFIGS, PHASES
from plsc_mae.config.resolve import load_config, read_yaml, split_override
from plsc_mae.config.schema import (
    Value,
    build,
    check_interval,
    coerce,
    option,
    options,
    plain_values,
    set_defaults,
    suggest,
    to_line,
    to_yaml,
)
from plsc_mae.errors import ConfigError

ALL_CONFIGS = [cls for command in COMMANDS.values() for cls in command.configs.values()]
Pair = tuple[float, float]
Sides = tuple[int, ...]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Base:
    """Options to test with."""

    defaults: ClassVar[dict[str, object]] = {}

    def __init_subclass__(cls) -> None:
        set_defaults(cls, cls.__dict__.get("defaults", {}))

    rate: float = option(0.5, "a share", within="[0, 1)")
    sides: tuple[int, ...] = option((8,), "pixels", within="[1, inf)")
    note: str | None = option(None, "text")


@dataclasses.dataclass(kw_only=True, frozen=True)
class Child(Base):
    """A preset of them."""

    defaults: ClassVar[dict[str, object]] = {"rate": 0.25}


@pytest.mark.parametrize(
    ("raw", "hint", "expected"),
    [
        ("1e-3", float, 1e-3),  # YAML 1.1 reads a number without a point as text
        (yaml.safe_load("blr: 1e-3")["blr"], float, 1e-3),
        (yaml.safe_load("blr: 1.5e-4")["blr"], float, 1.5e-4),
        (3, float, 3.0),
        ("64", int, 64),
        (64, int, 64),
        ("-1", int, -1),
        (7, str, "7"),
        (1.5, str, "1.5"),
        (None, str, ""),
        ("a b", str, "a b"),
        (True, bool, True),
        (False, bool, False),
        *[(word, bool, True) for word in ("true", "True", "YES", "on", "1")],
        *[(word, bool, False) for word in ("false", "False", "NO", "off", "0")],
        (None, float | None, None),
        *[(word, float | None, None) for word in ("", "none", "None", "null", "~")],
        ("2.5", float | None, 2.5),
        (4, int | None, 4),
        (None, Sides | None, None),
        ("32 64", Sides | None, (32, 64)),
        ("0.9 0.95", Pair, (0.9, 0.95)),
        ("0.9,0.95", Pair, (0.9, 0.95)),
        ("0.9, 0.95", Pair, (0.9, 0.95)),
        ([0.9, "95e-2"], Pair, (0.9, 0.95)),
        (["0.9,", "0.95"], Pair, (0.9, 0.95)),
        (["0.9,0.95"], Pair, (0.9, 0.95)),  # one word after a flag
        (["0.9", "0.95"], Pair, (0.9, 0.95)),
        (224, Sides, (224,)),
        ("224", Sides, (224,)),
        ([192, 256], Sides, (192, 256)),
        ("pil", Literal["pil", "opencv"], "pil"),
        (None, Literal["a", "b"] | None, None),
    ],
)
def test_values_become_what_their_annotation_says(raw, hint, expected):
    found = coerce(Value(raw, "here"), hint)
    assert found == expected
    assert type(found) is type(expected)


def test_all_wrong_values_are_named():
    values = {"rate": Value(2, "--rate"), "sides": Value("x", "--sides"), "note": Value("fine", "--note")}
    with pytest.raises(ConfigError, match=r"--rate must lie in \[0, 1\), got 2.0\n--sides: expected a whole number"):
        build(Base, values)


@pytest.mark.parametrize(
    ("raw", "hint", "told"),
    [
        ("fast", float, "expected a number, got 'fast'"),
        (True, float, "expected a number, got True"),
        ([1.0], float, "expected a number, got '1.0'"),
        (None, float, "expected a number, got None"),
        (10**400, float, f"expected a number, got {10**400}"),
        ("1.5", int, "expected a whole number, got '1.5'"),
        (64.0, int, "expected a whole number, got 64.0"),
        (True, int, "expected a whole number, got True"),
        ("maybe", bool, "expected true or false, got 'maybe'"),
        (None, bool, "expected true or false, got None"),
        (True, str, "expected text, got True"),
        ("0.9", Pair, "expected 2 values, got '0.9'"),
        ("0.9 0.95 0.99", Pair, "expected 2 values, got '0.9 0.95 0.99'"),
        ([0.9], Pair, "expected 2 values, got '0.9'"),
        (0.9, Pair, "expected 2 values, got 0.9"),
        ("0.9 x", Pair, "expected a number, got 'x'"),
        ("", Sides, "expected at least one value, got ''"),
        ([], Sides, "expected at least one value, got ''"),
        ("opencvv", Literal["pil", "opencv"], "expected one of pil, opencv, got 'opencvv'; did you mean 'opencv'?"),
        (3, Literal["pil", "opencv"], "expected one of pil, opencv, got 3"),
    ],
)
def test_what_cannot_be_coerced_is_told_with_its_place(raw, hint, told):
    with pytest.raises(ConfigError) as error:
        coerce(Value(raw, "file.yaml: name"), hint)
    assert str(error.value) == f"file.yaml: name: {told}"


@pytest.mark.parametrize(
    ("within", "inside", "outside"),
    [
        ("(0, 1)", [1e-9, 0.5, 0.999], [0.0, 1.0, -1, 2, float("nan")]),
        ("[0, 1)", [0.0, 0.999], [-1e-9, 1.0]),
        ("(0, 1]", [1.0], [0.0, 1.001]),
        ("[1, inf)", [1, 10**9], [0, -1, float("inf"), float("nan")]),
        ("[0, 1)", [(0.9, 0.95)], [(0.9, 1.0), (-0.1, 0.5)]),
    ],
)
def test_intervals(within, inside, outside):
    for value in inside:
        check_interval(value, within, "x")
    for value in outside:
        with pytest.raises(ConfigError, match=r"^x must lie in "):
            check_interval(value, within, "x")


def test_build_takes_defaults_coerces_and_checks():
    assert build(Child, {}) == Child(rate=0.25, sides=(8,), note=None)
    assert build(Child, {"rate": Value("0.75", "-o rate"), "sides": Value("2,3", "f: sides")}) == Child(
        rate=0.75, sides=(2, 3)
    )
    with pytest.raises(ConfigError, match=r"^--rate must lie in \[0, 1\), got 1.0$"):
        build(Child, {"rate": Value("1", "--rate")})
    with pytest.raises(ConfigError, match=r"^f: sides must lie in \[1, inf\), got 0$"):
        build(Child, {"sides": Value([4, 0], "f: sides")})


def test_a_preset_keeps_help_and_interval():
    (base,) = (item for item in options(Base) if item.name == "rate")
    (child,) = (item for item in options(Child) if item.name == "rate")
    assert (base.default, child.default) == (0.5, 0.25)
    assert child.metadata == base.metadata


def test_a_preset_names_inherited_options_only():
    with pytest.raises(TypeError, match=r"defaults: 'rat' is not an inherited option; did you mean 'rate'\?"):

        class Misspelled(Base):
            defaults: ClassVar[dict[str, object]] = {"rat": 0.25}


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_the_table_of_a_class_is_its_whole_preset(cls):
    """Every default that differs from the option's declaration is in `defaults` of the class, and nothing else is."""
    assert not any(base.__dict__.get("defaults") for base in cls.__mro__[1:])
    for item in options(cls):
        bases = [b for b in cls.__mro__[1:] if item.name in getattr(b, "__dataclass_fields__", {})]
        original = bases[-1].__dataclass_fields__[item.name].default if bases else item.default
        assert (item.default != original) == (item.name in cls.defaults), item.name


@pytest.mark.parametrize("cls", ALL_CONFIGS, ids=lambda cls: cls.__name__)
def test_config_classes_have_few_ancestors(cls):
    assert len(cls.__mro__) - 1 <= 10  # without object


@pytest.mark.parametrize("cls", ALL_CONFIGS, ids=lambda cls: cls.__name__)
def test_every_option_is_explained_and_its_default_obeys_it(cls):
    hints = typing.get_type_hints(cls)
    others = {item.name for item in dataclasses.fields(cls)} - {item.name for item in options(cls)}
    assert others <= {"given"}, "a field that is no option cannot be set"
    for item in options(cls):
        help = item.metadata["help"]
        assert len(help) > 5, f"{item.name} needs a help text"
        assert "\n" not in help
        assert not help.endswith(".")
        assert item.default == () or coerce(Value(item.default, item.name), hints[item.name]) == item.default
        if item.metadata["within"] and item.default is not None:
            check_interval(item.default, item.metadata["within"], item.name)
        if item.name.endswith(("_heads", "_size")):
            assert item.metadata["within"], f"{item.name} would accept 0"


def test_retired_options_and_aliases_do_not_shadow_live_ones():
    for cls in CONFIGS:
        live = {item.name for item in options(cls)}
        assert not live & set(cls.retired)
        assert not live & set(cls.aliases)
        assert set(cls.aliases.values()) <= live
        assert all(retired.reason for retired in cls.retired.values())


@pytest.mark.parametrize(("phase", "method"), [(phase, method) for phase in PHASES for method in PHASES[phase]])
def test_yaml_leads_with_method_and_phase_and_comes_back_equal(phase, method, tmp_path):
    rates = {"lr": None, "blr": 1.5e-4}
    config = dataclasses.replace(PHASES[phase][method](), input_size=(192, 256), clip_grad=None, exp_name="7", **rates)
    text = to_yaml(config, "# header\n")
    assert text.startswith(f"# header\nmethod: {method}\nphase: {phase}\n")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    again = load_config(str(file))
    assert type(again) is type(config)
    assert again == config


def test_plain_values_and_the_line_hold_every_option():
    config = Child(sides=(2, 3))
    assert plain_values(config) == {"rate": 0.25, "sides": [2, 3], "note": None}
    assert to_line(config) == "rate=0.25 sides=[2, 3] note=None"
    assert to_line(config, changed_only=True) == "sides=[2, 3]"


def test_read_yaml(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("blr: 1e-3\n5: x\n")
    assert read_yaml(str(file)) == {"blr": Value("1e-3", f"{file}: blr"), "5": Value("x", f"{file}: 5")}
    file.write_text("# nothing but a comment\n")
    assert read_yaml(str(file)) == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"blr: 1\n  lr: 2\n", "is not valid YAML"),
        (b"a: [1, 2\n", "is not valid YAML"),
        (b"a: 2024-13-45\n", "is not valid YAML"),
        (b"a: !!bool x\n", "is not valid YAML"),
        (b"a: !!timestamp x\n", "is not valid YAML"),
        (b"\x80\x02}q\x00.", "is a pickle of Python; expected a YAML file"),  # a checkpoint given for a config
        (b"a: \x07\n", "is a binary file; expected a YAML file"),
        (b"PK\3\4" + bytes(40), "is a zip archive; expected a YAML file"),
        (b"- 1\n- 2\n", "expected lines of `option: value`, got list"),
        (b"just words\n", "expected lines of `option: value`, got str"),
        (b"optim:\n  lr: 1e-3\n", "'optim' has nested options; write one `option: value` per line"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, told):
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(str(file))
    assert str(error.value).startswith(str(file))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"^cannot read the config file {path}: "):
            read_yaml(str(path))


def test_overrides():
    assert split_override("blr=1e-3") == ("blr", Value("1e-3", "-o blr"))
    assert split_override("optim.blr=1e-3") == ("blr", Value("1e-3", "-o optim.blr"))
    assert split_override("data_path=a=b") == ("data_path", Value("a=b", "-o data_path"))
    with pytest.raises(ConfigError, match=r"^-o blr: expected key=value$"):
        split_override("blr")


def test_suggestions():
    assert suggest("wieght_decay", ["blr", "weight_decay"]) == "; did you mean 'weight_decay'?"
    assert suggest("zzz", ["blr", "weight_decay"]) == ""


def test_none_after_a_flag_of_several_values():
    """The command line gives a list of words; `--logger none` is as good as `logger: none` in YAML."""
    assert coerce(Value(["none"], "--logger"), tuple[str, ...] | None) is None
    assert coerce(Value(["none", "b"], "--names"), tuple[str, ...] | None) == ("none", "b")
