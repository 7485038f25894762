"""Results of checks, and the file in which a process passes them to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

Outcome = Literal["ok", "differs", "failed", "slow", "skipped"]
Number = float | int | bool | str


class Result(NamedTuple):
    """Result of a check."""

    check: str  # name of the check
    # "ok"; "differs" if it ran and its numbers are not as expected; "failed" if it raised an error,
    # crashed, exceeded a time limit or found no kernels for the chip; "slow" if it exceeded a limit on a
    # busy machine, so that nothing is known; "skipped" if it was not run: it does not apply here, the
    # check of kernels did not pass, or the time for all checks was used up
    outcome: Outcome
    summary: str  # one line for the user
    numbers: Mapping[str, Number] = {}  # measured values by name
    seconds: float = 0.0  # duration of the check in seconds; 0 if it was skipped before its start

    @property
    def is_bad(self) -> bool:
        """True if the outcome is "differs" or "failed"."""
        return self.outcome in ("differs", "failed")


def judged(check: str, *, good: bool, summary: str, numbers: Mapping[str, Number]) -> Result:
    """Return the result of a check that ran: "ok" if `good`, else "differs"."""
    return Result(check, "ok" if good else "differs", summary, numbers)


def failure(check: str, error: BaseException) -> Result:
    """Return the result of a check that raised `error`; the summary has its type and the start of its message."""
    lines = [line.strip() for line in str(error).splitlines()]
    # Paddle puts its C++ call stack first; the message comes last, after such a heading.
    heading = next((i for i, line in enumerate(lines) if line.startswith("Error Message Summary")), -1)
    words = " ".join(line for line in lines[heading + 1 :] if line.strip("-"))
    return Result(check, "failed", f"{type(error).__name__}: {words[:300]}")


def append(path: Path, result: Result) -> None:
    """Append a result to a file of results, one JSON object per line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result._asdict()) + "\n")


def read(path: Path) -> list[Result]:
    """Return the results in a file, [] if it does not exist; a last line that is still being written is ignored."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [Result(**json.loads(line)) for line in whole.splitlines()]
