"""The parser that argcomplete reads has every command, and the flags of the command that is being typed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from plsc_mae.cli import COMMANDS
from plsc_mae.config.completion import Completed, completion_parser
from plsc_mae.config.recipes import recipe_names

ALL = {name: Completed(c.configs, c.positional, c.parallel) for name, c in COMMANDS.items()}


def below(parser: argparse.ArgumentParser, *names: str) -> argparse.ArgumentParser:
    """Return the parser of a command in a command."""
    for name in names:
        (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = group.choices[name]
    return parser


def actions(*names: str) -> dict[str, argparse.Action]:
    parser = below(completion_parser(ALL, {"plsc-mae", *names}), *names)
    return {flag: action for action in parser._actions for flag in action.option_strings or [action.dest]}


def test_every_command_is_offered_and_only_the_named_one_has_flags():
    parser = completion_parser(ALL, {"plsc-mae", "knn"})
    for name in COMMANDS:
        flags = below(parser, *name.split())._option_string_actions
        assert ("--config" in flags) == (name == "knn"), name


def test_flags_choices_and_recipes():
    flags = actions("finetune")
    assert {"--layer_decay", "--eval", "--no_eval", "--linear_type", "--config"} <= flags.keys()
    assert flags["--method"].choices == list(COMMANDS["finetune"].configs)
    assert flags["--image_backend"].choices == ("pil", "opencv")
    assert "--dialect" in actions("weights", "convert")
    assert "--norm_pix_loss" in actions("launch", "pretrain")
    assert [actions(name)[folder].nargs for name, folder in (("runs", "run_dirs"), ("plot", "run_dir"))] == ["*", "?"]
    assert actions("configs")["recipe"].completer("demo/m") == ["demo/mae", "demo/mae_objects"]
    assert len(actions("configs")["recipe"].completer("")) == len(recipe_names())


def answers(line: str, out: Path, *, before: str = "pass") -> list[str]:
    """What a shell would offer after `line`; `before` is code that runs first."""
    program = f"import sys; {before}; from plsc_mae.__main__ import main; sys.exit(main([]))"
    shell = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    own = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    environ = {**shell, **own, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, check=True)
    assert done.stdout == b""
    return [word.strip() for word in out.read_text().splitlines()] if out.exists() else []


@pytest.mark.long
def test_argcomplete_answers(tmp_path):
    pytest.importorskip("argcomplete")
    assert answers("plsc-mae fine", tmp_path / "out") == ["finetune"]
    assert answers("plsc-mae finetune --config demo/m", tmp_path / "out") == ["demo/mae", "demo/mae_objects"]


@pytest.mark.long
def test_without_argcomplete_nothing_is_offered(tmp_path):
    assert answers("plsc-mae fine", tmp_path / "out", before="sys.modules['argcomplete'] = None") == []
