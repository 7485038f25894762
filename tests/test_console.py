"""The console: whole lines above a progress bar, wrapped for a terminal only; text, nothing, or JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import warnings

import pytest
from tqdm import tqdm

from plsc_mae import console


class Terminal(io.StringIO):
    """A terminal; `screen` is what a reader sees."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        shown = []
        for line in self.getvalue().replace("\r\n", "\n").split("\n"):
            text = ""
            for part in line.split("\r"):
                erased = part.startswith("\x1b[K")
                part = part.removeprefix("\x1b[K")
                text = part if erased else part + text[len(part) :]
            shown.append(text.rstrip())
        return shown


@pytest.fixture
def open_terminal(monkeypatch):
    """Return a function that makes a terminal of 60 columns; called in a test, after pytest has set its own streams."""
    log = logging.getLogger("plsc_mae")
    before = log.handlers, log.level, log.propagate
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restored afterwards

    def make() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("COLUMNS", "60")
        console.log_to_console(main=True)
        return screen

    yield make
    log.handlers, log.level, log.propagate = before


def test_lines_stand_above_the_bar(open_terminal):
    terminal = open_terminal()
    log = logging.getLogger("plsc_mae.test")
    with tqdm(total=4, desc="epoch 0", leave=False, mininterval=0, ncols=50, ascii=True) as bar:
        for i in range(4):
            bar.update()
            log.info("line %d", i)
            log.warning("attention %d", i)
            console.write_error(f"error {i}")
        warnings.showwarning("rare", UserWarning, "file.py", 7)
    *shown, last = terminal.screen
    lines = [text for i in range(4) for text in (f"line {i}", f"warning: attention {i}", f"error {i}")]
    assert shown == [*lines, "warning: rare (UserWarning in file.py, line 7)"]
    assert last == ""


def test_a_forked_process_erases_the_bar_and_draws_none(open_terminal, monkeypatch):
    terminal = open_terminal()
    handler = logging.getLogger("plsc_mae").handlers[1]
    with tqdm(total=4, desc="epoch 0", leave=False, mininterval=0, ncols=50, ascii=True) as bar:
        bar.update()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            handler.emit(logging.LogRecord("plsc_mae", logging.WARNING, "", 0, "bad image", None, None))
        assert terminal.screen[-2:] == ["warning: bad image", ""]
    assert terminal.screen == ["warning: bad image", ""]


def test_long_sentences_are_wrapped_on_a_terminal_only(open_terminal, monkeypatch, capsys):
    terminal = open_terminal()
    path = "/a/long/path" * 8
    text = (
        f"cannot read {path}: it is not an image of a known format; using the next image instead, as --bad_image says"
    )
    console.write_error(text)
    assert f"  {path}:" in terminal.screen  # whole, to be copied
    assert all(len(line) < 60 for line in terminal.screen if path not in line)
    monkeypatch.undo()
    console.write_error(text)
    assert capsys.readouterr().err == text + "\n"


def test_commands_stay_whole_and_rows_keep_their_column(open_terminal):
    terminal = open_terminal()
    command = f"{console.COMMAND_INDENT}plsc-mae pretrain --config {'x' * 50} --auto_resume"
    console.report(f"stopped after a long explanation that does not fit into one line of this terminal:\n{command}")
    console.report_row("data", "word " * 20)
    rows = terminal.screen[terminal.screen.index(command) + 1 :]
    assert rows[0].startswith("  data      word word")
    assert rows[1].startswith(" " * console.LABEL_COLUMNS + "word")
    assert max(map(len, rows)) < 60


@pytest.fixture
def styled(monkeypatch):
    """Return a function that shows a report, a log line and a result in a style; it returns standard output."""
    log = logging.getLogger("plsc_mae")
    before = log.handlers, log.level, log.propagate

    def show(**style: bool) -> str:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        console.log_to_console(main=True)
        with console.deferring_lines():
            log.info("before the style is known")
            console.use_style(**style)
        console.report("for people", {"event": "epoch", "loss": 0.5})
        console.report("for people only")
        console.report(None, {"event": "start"})
        console.print_result("accuracy 50", {"event": "evaluation", "acc1": 50.0})
        return sys.stdout.getvalue()

    yield show
    console.use_style()
    log.handlers, log.level, log.propagate = before


def test_a_run_prints_text_or_results_only_or_json(styled):
    assert styled().splitlines() == ["before the style is known", "for people", "for people only", "accuracy 50"]
    assert styled(quiet=True).splitlines() == ["accuracy 50"]
    assert not console.shows_bars()
    assert [json.loads(line) for line in styled(as_json=True).splitlines()] == [
        {"event": "message", "message": "before the style is known"},
        {"event": "epoch", "loss": 0.5},
        {"event": "start"},
        {"event": "evaluation", "acc1": 50.0},
    ]


def test_the_program_is_named_as_the_shell_finds_it(monkeypatch, tmp_path):
    script = tmp_path / "plsc-mae"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert console.program() == "plsc-mae"
    monkeypatch.setenv("PATH", "/nowhere")
    assert console.program() == str(script)
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py"])
    assert console.program() == f"{sys.executable} -m plsc_mae"


def test_an_interrupt_starts_on_a_new_line_of_a_terminal(open_terminal, monkeypatch):
    terminal = open_terminal()
    terminal.write("epoch 0:  10%|#   | 1/10^C")
    console.write_error("plsc-mae: interrupted", interrupted=True)
    assert terminal.screen == ["", "plsc-mae: interrupted", ""]
    monkeypatch.undo()
    assert console.after_interrupt("plsc-mae: interrupted") == "plsc-mae: interrupted"


def test_an_interrupt_while_a_command_loads_ends_the_process(capfd):
    """Afterwards it raises KeyboardInterrupt; the handlers of others stay."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, console.end_at_interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == console.INTERRUPTED
    assert capfd.readouterr().err == "plsc-mae: interrupted\n"
    before = signal.signal(signal.SIGINT, console.end_at_interrupt)
    try:
        console.let_interrupts_raise()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.let_interrupts_raise()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_lines_for_a_reader_that_is_gone_are_dropped(styled, capsys, monkeypatch):
    """As `plsc-mae explain ... | head -2` closes the pipe: a traceback of logging stood there for every line."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        console.log_to_console(main=True)
        logging.getLogger("plsc_mae").info("a line")
        with contextlib.suppress(BrokenPipeError):  # the line is still in the buffer
            closed.close()
    assert capsys.readouterr().err == ""
