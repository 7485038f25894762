"""The help of the commands: a short first screen, and every option under `--help all`."""

from __future__ import annotations

import typing

import pytest

from plsc_mae.cli import COMMANDS, main
from plsc_mae.config import PHASES, CAEConfig, MAEConfig
from plsc_mae.config.help import describe, names_of
from plsc_mae.config.schema import options


def shown(capsys, words: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main(words.split())
    assert exit.value.code == 0
    return capsys.readouterr().out


def flags(text: str) -> set[str]:
    """The flags that begin a line of the help."""
    return {line.split()[0].strip(",").removeprefix("--") for line in text.splitlines() if line.startswith("  --")}


@pytest.mark.parametrize("phase", PHASES)
def test_the_first_screen_is_short_and_names_the_way_to_the_rest(capsys, phase):
    text = shown(capsys, f"{phase} --help")
    assert f"plsc-mae {phase} --help all" in text
    assert {"data_path", "model", "output_dir", "epochs", "batch_size"} <= flags(text)
    assert len(flags(text)) < 20
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("phase", PHASES)
def test_help_all_lists_the_options_of_every_method_and_names_their_methods(capsys, phase):
    text = shown(capsys, f"{phase} --help all")
    every = {item.name for cls in PHASES[phase].values() for item in options(cls)}
    assert flags(text) - {"method"} == every
    assert all(method in text for method in PHASES[phase])


def test_help_says_whose_an_option_is_and_which_defaults_differ(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(shown(capsys, "pretrain --help all").split())
    assert "smallest rectangle, in patches [16] (cae)" in text
    assert "epochs to train [mae: 400; cae, mae_priv, mae_pytorch: 300" in text
    assert "--amp, --no_amp mixed precision on GPU [on]" in text


def test_a_named_method_has_its_own_help(capsys):
    for words in ("--method cae --help", "--help --model cae_base_patch16_224_8k_vocab", "-o method=cae -h"):
        text = shown(capsys, f"pretrain {words}")
        assert "Method cae" in text
        assert CAEConfig().model in text
    assert flags(shown(capsys, "pretrain --method cae --help all")) == {o.name for o in options(CAEConfig)} | {"method"}


def test_frequent_options_exist():
    for configs in PHASES.values():
        for cls in configs.values():
            assert set(cls.frequent) <= {item.name for item in options(cls)}
            assert all(item.metadata["group"] for item in options(cls)), "an option of training has a heading"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in shown(capsys, f"{name} --help all").splitlines():
        assert len(line) <= columns or line.startswith("  --")  # a flag and its placeholder are not broken
        assert line == line.rstrip()


def test_placeholders_say_what_a_value_is():
    hints = typing.get_type_hints(MAEConfig)
    names = {item.name: names_of(item, hints[item.name]) for item in options(MAEConfig)}
    assert names["drop_path"] == "--drop_path RATE"
    assert names["keep_last"] == "--keep_last N"
    assert names["opt_betas"] == "--opt_betas BETA BETA"
    assert names["input_size"] == "--input_size N [N ...]"
    assert names["output_dir"] == "--output_dir DIR"
    assert names["image_backend"] == "--image_backend {pil,opencv}"


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ({"a": 0.25}, "share [0.25]"),
        ({"a": None}, "share [all]"),
        ({"a": None, "b": 1e-5, "c": None}, "share [a, c: all; b: 1e-05]"),
        ({"a": True}, "share [on]"),
        ({"a": (1, 2)}, "share [1 2]"),
    ],
)
def test_defaults_stand_in_brackets(defaults, text):
    assert describe("share [all]", defaults) == text


def test_an_unset_option_without_a_meaning_has_no_bracket():
    assert describe("share", {"a": None, "b": ""}) == "share"
    assert describe("share", {"a": None, "b": 3}) == "share [a: none; b: 3]"
