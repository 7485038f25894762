"""The user's mistakes and the world's faults, each told in one sentence.

The command line prints these without a traceback and exits with `exit_code`; anything else is a bug of ours
and keeps its full traceback.
"""

from __future__ import annotations

import signal


class UserError(Exception):
    """Something the user can mend. The message says what, where, what was expected, and the remedy."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A flag, YAML key or value that cannot be obeyed."""


class DataError(UserError):
    """A data set, folder or image file that cannot be used."""


class CheckpointError(UserError):
    """A weight or checkpoint file that cannot be read, written or matched to the model."""


class DivergedError(UserError):
    """Training produced a loss or gradient that is not finite."""

    exit_code = 3


class Stopped(Exception):
    """A run was asked to stop and has done so; the message says where it stands.

    Args:
        number: of the signal that asked.
        where: the sentence that follows the signal's name.

    Attributes:
        number: the same.
        exit_code: what a shell gives to a process ended by that signal.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f": {where}" if where else ""))
        self.number, self.exit_code = number, 128 + number
