"""The console: log lines, warnings, errors and progress bars share one terminal without overwriting each other."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from plsc_mae.names import escape_controls

# Carriage return and the ANSI sequence that erases the rest of the line: removes a progress bar and an echoed ^C.
ERASE_LINE = "\r\x1b[K"
FILE_COLUMNS = 120  # width of wrapped text if the output is no terminal


def columns() -> int | None:
    """Return the width of the terminal on standard output; None if the output goes to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrap(text: str, width: int | None = None) -> str:
    """Break each line of a text at spaces; continuation lines are indented by two spaces.

    Args:
        text: the text; its own line breaks are kept.
        width: width of the terminal in columns, of which the last stays free; None takes that of the terminal on
            standard output, or FILE_COLUMNS without one.
    """
    width = max((width or columns() or FILE_COLUMNS) - 1, 20)
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def write_line(text: str) -> None:
    """Write a line to standard output, above progress bars."""
    with _bars_hidden(sys.stdout):
        print(text, flush=True)


def write_error(text: str, *, interrupted: bool = False) -> None:
    """Write a sentence to standard error, above progress bars; on a terminal it is wrapped.

    Args:
        text: the sentence.
        interrupted: whether Ctrl-C was pressed, which a terminal echoes as ^C.
    """
    with _bars_hidden(sys.stderr):
        fitted = _fitted(text, sys.stderr)
        print(after_interrupt(fitted) if interrupted else fitted, file=sys.stderr, flush=True)


def _fitted(text: str, stream: TextIO) -> str:
    """Wrap a text for a terminal; text for a file or a pipe stays on its lines, for programs that search it."""
    return wrap(text, shutil.get_terminal_size().columns) if stream.isatty() else text


def after_interrupt(text: str) -> str:
    """Return `text` for standard error, on a new line if a terminal has just echoed ^C."""
    return f"{ERASE_LINE}\n{text}" if sys.stderr.isatty() else text


def log_to_console(*, main: bool) -> None:
    """Send the package's log to stdout and its warnings to stderr.

    Args:
        main: True in the first process; other processes log only warnings and errors.
    """
    handler = _ConsoleHandler(sys.stdout)
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    alarm = _ConsoleHandler(sys.stderr)
    alarm.setLevel(logging.WARNING)
    alarm.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("plsc_mae")
    log.handlers = [handler, alarm]
    log.setLevel(logging.INFO if main else logging.WARNING)
    log.propagate = False
    if sys.stderr.isatty():
        warnings.showwarning = _show_warning  # those of Paddle and NumPy would break the bar, too


@contextlib.contextmanager
def showing_log() -> Iterator[None]:
    """Show the package's log as `log_to_console` does within the context, unless it has handlers of the caller's."""
    log = logging.getLogger("plsc_mae")
    if log.handlers:
        yield
        return
    level, propagate = log.level, log.propagate
    with warnings.catch_warnings():  # restores `warnings.showwarning`
        log_to_console(main=True)
        try:
            yield
        finally:
            log.handlers, log.propagate = [], propagate
            log.setLevel(level)


def shows_bars() -> bool:
    """Return whether standard error shows progress bars: it is a terminal or the output of a notebook's cell."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a Python warning above the progress bars; the arguments are those of `warnings.showwarning`."""
    write_error(f"warning: {message} ({category.__name__} in {filename}, line {lineno})")


class _ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.10 has no StreamHandler[TextIO]
    """Handler that writes above the progress bars, also in forked data workers, which cannot redraw them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._process = os.getpid()

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._process

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record; a forked process erases the bar of its parent, which redraws it later.

        Control characters, which may come from the names of files, are escaped.
        """
        text = _fitted(escape_controls(super().format(record)), self.stream)
        return ERASE_LINE + text if self._is_forked and self.stream.isatty() else text

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        # In a forked process tqdm would draw an outdated bar, and a thread that held tqdm's lock does not exist.
        with contextlib.nullcontext() if self._is_forked else _bars_hidden(self.stream):
            super().emit(record)


@contextlib.contextmanager
def _bars_hidden(stream: TextIO) -> Iterator[None]:
    """Remove tqdm's progress bars from the terminal within the context; without a bar this does nothing."""
    tqdm: Any = sys.modules.get("tqdm")  # not imported: most commands draw no bar
    if tqdm is None:
        yield
    else:
        with tqdm.tqdm.external_write_mode(file=stream):
            yield
