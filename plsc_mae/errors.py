"""Errors reported as one sentence, without a traceback.

The command line prints the sentences of a `UserError` and exits with its `exit_code`. Other exceptions are bugs of
plsc_mae and keep their traceback, except `Stopped` and those caused by Ctrl-C or a closed pipe.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection

HANG_EXIT_CODE = 4  # of all processes of a run that hangs

_flags: frozenset[str] | None = None


def use_flags(names: Collection[str] | None) -> None:
    """Set the options of the running command; messages then suggest no others. None allows all."""
    global _flags
    _flags = None if names is None else frozenset(names)


def flag(*names: str) -> str:
    """Return `--NAME` for the first of `names` that is an option of the running command.

    If there is no such option, return `names[0]` without dashes.
    """
    return next((f"--{name}" for name in names if _has(name)), names[0])


def remedies(*phrases: str) -> str:
    """Join phrases by commas and "or", except those with a flag that the running command lacks.

    If no phrase is left, the result is "".
    """
    possible = [text for text in phrases if all(_has(name) for name in re.findall(r"--(\w+)", text))]
    return ", or ".join([*([", ".join(possible[:-1])] if possible[1:] else []), *possible[-1:]])


def _has(name: str) -> bool:
    return _flags is None or name in _flags or name.removeprefix("no_") in _flags


class UserError(Exception):
    """An error that the user can correct, or several of them, a sentence each.

    A sentence names the value, its place, the expectation and the remedy.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigError(UserError, ValueError):
    """An option that is unknown, invalid, or not possible with the other options, the data or the machine."""


class DataError(UserError):
    """A data set, folder, image file or feature that cannot be used."""


class CheckpointError(UserError):
    """A weight file, checkpoint, log file or output folder that cannot be read, written or used as intended."""


class FolderError(UserError):
    """An output folder that another command writes to, or that cannot be written."""


class DivergedError(UserError):
    """A loss or gradient of training that is not finite."""

    exit_code = 3


class Stopped(Exception):
    """The end of a run after a signal such as SIGTERM.

    Args:
        number: number of the signal.
        where: the state of the run, for the message.

    Attributes:
        number: number of the signal.
        exit_code: the code that a shell reports for a process ended by that signal.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f": {where}" if where else ""))
        self.number, self.exit_code = number, 128 + number
