"""Errors reported as one sentence, without a traceback.

The command line prints the sentence and exits with the error's `exit_code`. Any other exception is a bug of plsc_mae
and keeps its traceback.
"""

from __future__ import annotations

import signal


class UserError(Exception):
    """An error that the user can correct. The message names the value, its place, the expectation and the remedy."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """An unknown flag or YAML key, or an invalid value."""


class DataError(UserError):
    """A data set, folder or image file that cannot be used."""


class CheckpointError(UserError):
    """A weight or checkpoint file that cannot be read, written or matched to the model."""


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
