"""The console: log lines, warnings, errors and progress bars share one terminal without overwriting each other.

Progress, results, warnings and errors of a run are printed here, so that `use_style` can choose the output: everything
as text, only the results, warnings and errors, or a JSON object per line for programs.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import logging.handlers
import os
import shlex
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TextIO

from plsc_mae.names import as_json, escape_controls

# Carriage return and the ANSI sequence that erases the rest of the line: removes a progress bar and an echoed ^C.
ERASE_LINE = "\r\x1b[K"
FILE_COLUMNS = 120  # width of wrapped text if the output is not a terminal
COMMAND_INDENT = " " * 4  # a line that starts with it is a command to copy, and is never wrapped
LABEL_COLUMNS = 12  # width of the labels of `report_row`, with two spaces before and at least one after each
PROGRAM = "plsc-mae"
INTERRUPTED = 130  # exit code after Ctrl-C

Style = Literal["text", "quiet", "json"]
_style: Style = "text"


def columns() -> int | None:
    """Return the width of the terminal on standard output; None if the output goes to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrap(text: str, width: int | None = None, *, indent: int = 2) -> str:
    """Break each line of a text at spaces; a line that starts with COMMAND_INDENT stays whole.

    Args:
        text: the text; its own line breaks are kept.
        width: width of the terminal in columns, of which the last stays free; None means the width of the
            terminal on standard output, or FILE_COLUMNS if the output goes to a file or a pipe.
        indent: number of spaces before continuation lines.
    """
    width = max((width or columns() or FILE_COLUMNS) - 1, 20)
    fill = textwrap.TextWrapper(
        width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ).fill
    return "\n".join(line if line.startswith(COMMAND_INDENT) else fill(line) for line in text.split("\n"))


def program() -> str:
    """Return the shell command that starts this program again.

    It is `plsc-mae` if the shell finds this program under that name, else the path of the script; without a script, it
    is `python -m plsc_mae` with the path of the interpreter.
    """
    own = sys.argv[0]
    if Path(own).name == PROGRAM and shutil.which(PROGRAM) != own:
        return shlex.quote(own)
    return PROGRAM if shutil.which(PROGRAM) else f"{shlex.quote(sys.executable)} -m plsc_mae"


# ------------------------------------------------------------------------------------------------ output of a run


def use_style(*, quiet: bool = False, as_json: bool = False) -> None:
    """Choose the form of standard output; warnings and errors stay text on standard error.

    Args:
        quiet: True to print results only, and no progress bars.
        as_json: True to print a JSON object per line, and no progress bars.
    """
    global _style
    _style = "json" if as_json else "quiet" if quiet else "text"


def report(text: str | None, event: Mapping[str, Any] | None = None, *, indent: int = 2) -> None:
    """Print progress of a run above the progress bars.

    Args:
        text: the text for people; None prints nothing in the style "text".
        event: the object for programs, with the key "event"; None prints nothing in the style "json".
        indent: number of spaces before the continuation lines of a text that a terminal wraps.
    """
    if text is not None or _style == "json":
        logging.getLogger("plsc_mae").info("%s", text, extra={"event": event, "indent": indent})


def report_row(label: str, text: str) -> None:
    """Print a labeled row of the overview of a run, in the style "text" only."""
    report(f"  {label:<{LABEL_COLUMNS - 2}}{text}", indent=LABEL_COLUMNS)


def print_result(text: str, event: Mapping[str, Any]) -> None:
    """Print the result that a command was called for: `event` in the style "json", `text` in the others."""
    with _bars_hidden(sys.stdout):
        print(printed_json(event) if _style == "json" else text, flush=True)


def printed_json(content: Any, indent: int | None = None) -> str:
    """Return `content` as JSON for standard output, escaping characters outside ASCII unless its encoding is UTF-8."""
    if codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8":
        return as_json(content, indent)
    return json.dumps(content, indent=indent)


# ------------------------------------------------------------------------------------------------ errors and log


def write_error(text: str, *, interrupted: bool = False) -> None:
    """Write a sentence to standard error, above progress bars; on a terminal it is wrapped.

    Args:
        text: the sentence.
        interrupted: whether Ctrl-C was pressed, which a terminal echoes as ^C.
    """
    with _bars_hidden(sys.stderr):
        fitted = _fitted(text, sys.stderr)
        print(after_interrupt(fitted) if interrupted else fitted, file=sys.stderr, flush=True)


def _fitted(text: str, stream: TextIO, indent: int = 2) -> str:
    """Wrap a text if `stream` is a terminal; else return it unchanged, for programs that search the lines."""
    return wrap(text, shutil.get_terminal_size().columns, indent=indent) if stream.isatty() else text


def after_interrupt(text: str) -> str:
    """Return `text` for standard error after Ctrl-C.

    On a terminal, which has echoed ^C, the text begins on a new line; elsewhere it is unchanged.
    """
    return f"{ERASE_LINE}\n{text}" if sys.stderr.isatty() else text


def end_at_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the process with exit code INTERRUPTED and a message.

    This is the handler of SIGINT while a command loads: a KeyboardInterrupt within the import of Paddle becomes an
    ImportError.
    """
    with contextlib.suppress(OSError):
        os.write(2, after_interrupt(f"{PROGRAM}: interrupted\n").encode())  # print is not reentrant
    os._exit(INTERRUPTED)


def let_interrupts_raise() -> None:
    """Install `raise_interrupt` in place of `end_at_interrupt`; keep any other handler of SIGINT."""
    if signal.getsignal(signal.SIGINT) is end_at_interrupt:
        signal.signal(signal.SIGINT, raise_interrupt)


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Python's own handler of SIGINT does.

    It is the handler of a process of the command line, by which `plsc_mae.train.signals` recognizes one.
    """
    signal.default_int_handler(number, frame)


def log_to_console(*, main: bool) -> None:
    """Send the package's log to stdout and its warnings to stderr.

    Args:
        main: True in the first process; other processes log only warnings and errors.
    """
    handler = _ConsoleHandler(sys.stdout)
    handler.addFilter(_is_shown)
    alarm = _ConsoleHandler(sys.stderr)
    alarm.setLevel(logging.WARNING)
    alarm.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("plsc_mae")
    log.handlers = [handler, alarm]
    log.setLevel(logging.INFO if main else logging.WARNING)
    log.propagate = False
    if sys.stderr.isatty():
        warnings.showwarning = _show_warning  # warnings of Paddle and NumPy would break the bar, too


def _is_shown(record: logging.LogRecord) -> bool:
    """Return whether standard output shows a record in the current style."""
    if record.levelno >= logging.WARNING or _style == "quiet":
        return False
    return _style == "text" or getattr(record, "event", record) is not None


@contextlib.contextmanager
def deferring_lines() -> Iterator[None]:
    """Hold back lines for standard output until the context ends, because the style is chosen within it."""
    handlers = logging.getLogger("plsc_mae").handlers
    shown = handlers[0]
    deferred = logging.handlers.MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, target=shown)
    handlers[0] = deferred
    try:
        yield
    finally:
        handlers[0] = shown
        deferred.close()  # writes the lines


@contextlib.contextmanager
def showing_log() -> Iterator[None]:
    """Show the package's log within the context as `log_to_console` does, unless the caller has given it handlers.

    After the context, the style is "text" again.
    """
    log = logging.getLogger("plsc_mae")
    if log.handlers:
        try:
            yield
        finally:
            use_style()
        return
    level, propagate = log.level, log.propagate
    with warnings.catch_warnings():  # restores `warnings.showwarning`
        log_to_console(main=True)
        try:
            yield
        finally:
            log.handlers, log.propagate = [], propagate
            log.setLevel(level)
            use_style()


def shows_bars() -> bool:
    """Return whether to show progress bars: standard error is a terminal or notebook, and the style is "text"."""
    return _style == "text" and _is_watched(sys.stderr)


def is_watched() -> bool:
    """Return whether standard output is a terminal or notebook, where a progress bar replaces log lines."""
    return _is_watched(sys.stdout)


def _is_watched(stream: TextIO) -> bool:
    """Return whether a stream is a terminal or the output of a notebook's cell."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


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

        Control characters, which may come from the names of files, are escaped. In the style "json", a
        record for standard output becomes its event as JSON, or an event "message" if it has no event.
        """
        if _style == "json" and record.levelno < logging.WARNING:
            return printed_json(getattr(record, "event", {"event": "message", "message": record.getMessage()}))
        text = _fitted(escape_controls(super().format(record)), self.stream, getattr(record, "indent", 2))
        return ERASE_LINE + text if self._is_forked and self.stream.isatty() else text

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        # In a forked process tqdm would draw an outdated bar, and a thread that held tqdm's lock does not exist.
        with contextlib.nullcontext() if self._is_forked else _bars_hidden(self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report an error of `emit`, except that the reader of the stream is gone: the command continues without it."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


@contextlib.contextmanager
def _bars_hidden(stream: TextIO) -> Iterator[None]:
    """Remove tqdm's progress bars from the terminal within the context; without a bar this does nothing."""
    tqdm: Any = sys.modules.get("tqdm")  # not imported: most commands draw no bar
    if tqdm is None:
        yield
    else:
        with tqdm.tqdm.external_write_mode(file=stream):
            yield
