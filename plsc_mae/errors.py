"""The user's mistakes and the world's faults, each told in one sentence.

The command line prints these without a traceback and exits with `exit_code`; anything else is a bug of ours
and keeps its full traceback.
"""

from __future__ import annotations


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
