"""Hang detector: ends a run whose processes live but make no progress, or no longer report.

A thread of every process sends the process's activity to process 0 in short intervals. Process 0 finds the process that
is silent or behind, and ends the run. It also sends its own activity to the others, which end the run if it is silent,
because a stopped process cannot detect itself. A run of one process watches itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from plsc_mae.errors import HANG_EXIT_CODE, flag
from plsc_mae.parallel import activity, failure_detector
from plsc_mae.parallel.activity import Activity
from plsc_mae.parallel.failure_detector import End, Watch

logger = logging.getLogger(__name__)

LONGEST_INTERVAL = 1.0  # seconds between two reports
REPORTS_PER_TIMEOUT = 20
SUSPICIOUS = 20.0  # seconds without progress after which a warning names a process, before gloo gives up after 30
FIRST_UPDATE = 1800.0  # least seconds without progress allowed up to the first update, which may compile kernels


@dataclasses.dataclass
class Observed:
    """Last observations of a process."""

    name: str  # name in messages
    heard: float  # time in seconds from which its silence counts
    moved: float  # time in seconds from which its lack of progress counts
    activity: Activity | None = None  # content of its last report; None before the first


class ProgressTable:
    """Reports of processes and the decision about a hang.

    Args:
        timeout: seconds without progress that count as a hang.
        names: names of the watched processes by index.
        now: current time in seconds.
    """

    def __init__(self, timeout: float, names: dict[int, str], now: float) -> None:
        self.timeout, self.names = timeout, names
        self.observed = {process: Observed(name, now, now) for process, name in names.items()}

    def hear(self, process: int, report: Activity, now: float) -> None:
        """Record the report of a process; one that has left the training before is watched again."""
        seen = self.observed.setdefault(process, Observed(self.names[process], now, now))
        if report != seen.activity:
            seen.moved = now
        seen.heard, seen.activity = now, report

    def restart(self, now: float) -> None:
        """Restart all time limits at `now`, because this process was suspended, and the others may have been, too."""
        for seen in self.observed.values():
            seen.heard = seen.moved = now

    def forget(self, process: int) -> None:
        """Stop watching a process that has left the training."""
        self.observed.pop(process, None)

    def find_silent(self, now: float) -> End | None:
        """Return the reason to end the run if a process has sent no report for the timeout, else None."""
        silent = [seen for seen in self.observed.values() if now - seen.heard >= self.timeout]
        if not silent:
            return None
        worst = min(silent, key=lambda seen: seen.heard)
        return _end(f"{worst.name} hangs: no report for {self._limit()}; last report: {_place(worst.activity)}", worst)

    def find_suspect(self, now: float) -> Observed | None:
        """Return the entry of a process that has been silent or behind for SUSPICIOUS seconds; None without one.

        Silent processes come first, then the one without progress for longest. It may be the cause of a failure
        elsewhere: gloo's collectives give up after 30 seconds, with a message that does not name the process.
        """
        silent = [seen for seen in list(self.observed.values()) if now - seen.heard >= SUSPICIOUS]
        table = [seen for seen in list(self.observed.values()) if seen.activity is not None]
        least = min(map(_rank, table), default=None)
        behind = [seen for seen in table if _rank(seen) == least and now - seen.moved >= SUSPICIOUS]
        suspects = silent or (behind if len(behind) < len(table) else [])
        return min(suspects, key=lambda seen: seen.moved, default=None)

    def describe_suspect(self, now: float) -> str:
        """Return a sentence about the result of `find_suspect`; "" without one."""
        seen = self.find_suspect(now)
        if seen is None:
            return ""
        return f"{seen.name} has made no progress for {now - seen.moved:.0f} s; last report: {_place(seen.activity)}"

    def find_stalled(self, now: float) -> End | None:
        """Return the reason to end the run if no process has made progress for the timeout, else None.

        Until every process has finished an update since its start, the timeout is at least FIRST_UPDATE.
        """
        table = [seen for seen in self.observed.values() if seen.activity is not None]
        if not table:
            return None
        started = all(seen.activity.has_updated for seen in table if seen.activity)
        timeout = self.timeout if started else max(self.timeout, FIRST_UPDATE)
        if now - max(seen.moved for seen in table) < timeout:
            return None
        least = min(_rank(seen) for seen in table)
        behind = [seen for seen in table if _rank(seen) == least]
        limit = self._limit() if timeout == self.timeout else f"{timeout:g} s before the first update"
        return _end(_describe(behind, limit, alone=len(table) == 1, all_equal=len(behind) == len(table)), behind[0])

    def _limit(self) -> str:
        return f"{self.timeout:g} s ({flag('hang_timeout')})"


def _describe(behind: list[Observed], limit: str, *, alone: bool, all_equal: bool) -> str:
    """Return a sentence that names the processes that are behind, and their current activity."""
    where = f"no progress for {limit} {_place(behind[0].activity)}"
    names = ", ".join(seen.name for seen in behind)
    if alone:
        return f"{names} hangs: {where}"
    if all_equal:
        return f"all processes hang, and none is behind the others: {where}"
    return f"{names} hang{'s' if len(behind) == 1 else ''} while the others wait: {where}"


def _rank(seen: Observed) -> tuple[int, bool]:
    """Return a sort key that is smallest for the processes that are behind."""
    assert seen.activity is not None
    return seen.activity.entered, seen.activity.waiting


def _place(report: Activity | None) -> str:
    return "none" if report is None else str(report)


def _end(cause: str, culprit: Observed) -> End:
    return End(cause, HANG_EXIT_CODE, hung_at=culprit.activity.update if culprit.activity else 0)


class HangDetector:
    """Thread that exchanges reports with the other processes and ends the run when it hangs.

    Args:
        timeout: seconds without progress that count as a hang.
        folder: folder of the stacks.
        watch: failure detector of this process; None for a run of one process.
    """

    def __init__(self, timeout: float, folder: Path, watch: Watch | None) -> None:
        self.watch, self.folder = watch, folder
        self.interval = min(LONGEST_INTERVAL, timeout / REPORTS_PER_TIMEOUT)
        self.process = 0 if watch is None else watch.process
        self.reports = {} if watch is None else dict(watch.reports)
        own = {} if self.process else {0: f"process 0 on {socket.gethostname()} (pid {os.getpid()})"}
        names = own | {number: connection.name for number, connection in self.reports.items()}
        self.table = ProgressTable(timeout, names, time.monotonic())
        self._left, self._suspect = threading.Event(), ""  # name of the last suspect
        self._thread = threading.Thread(target=self._run, name="hangs", daemon=True)

    def start(self) -> None:
        """Start the thread, and give the failure detector the folder of the stacks and the suspects."""
        if self.watch is not None:
            self.watch.stacks_folder = self.folder
            self.watch.describe_suspect = lambda: self.table.describe_suspect(time.monotonic())
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._left.set()
        self._thread.join()

    def leave(self) -> None:
        """Stop the thread and report to the others that this process has left the training."""
        self.stop()
        if self.watch is not None:
            self.watch.describe_suspect = str
        for connection in self.reports.values():
            connection.send(left=True)

    def _run(self) -> None:
        last = time.monotonic()
        self._exchange(last)
        while not self._left.wait(self.interval):
            now = time.monotonic()
            if now - last > self.table.timeout / 2:
                self.table.restart(now)
            last = now
            self._exchange(now)
            self._warn(now)
            end = self.table.find_silent(now)
            if end is None and self.process == 0:
                end = self.table.find_stalled(now)
            if end is not None:
                self._end(end)
                return

    def _exchange(self, now: float) -> None:
        """Send the activity of this process and record the newest reports of the others."""
        mine = dataclasses.replace(activity.current)
        if self.process == 0:
            self.table.hear(0, mine, now)
        for number, connection in self.reports.items():
            connection.send(**dataclasses.asdict(mine))
            if not (report := connection.latest()):  # none, or one that a full buffer has truncated
                continue
            if report.get("left"):
                self.table.forget(number)
            else:
                self.table.hear(number, Activity(**report), now)

    def _warn(self, now: float) -> None:
        """Log a warning when a process becomes the suspect."""
        suspect = self.table.find_suspect(now)
        if suspect is not None and suspect.name != self._suspect:
            logger.warning(
                "%s; the run ends if this lasts for %g s (%s)",
                *(self.table.describe_suspect(now), self.table.timeout, flag("hang_timeout")),
            )
        self._suspect = "" if suspect is None else suspect.name

    def _end(self, end: End) -> None:
        if self.watch is not None:
            self.watch.end_all(end)
        else:
            failure_detector.end_hung(end, self.folder)


@contextlib.contextmanager
def watching(timeout: float, folder: str | Path, update: int = 0) -> Iterator[None]:
    """End the run if it hangs within the context; all processes must enter.

    Args:
        timeout: seconds without progress that count as a hang; 0 watches nothing.
        folder: folder of the stacks that all processes write.
        update: number of updates before the context.
    """
    activity.start_run(update)
    if timeout == 0:
        yield
        return
    detector = HangDetector(timeout, Path(folder), failure_detector.current())
    detector.start()
    try:
        yield
    except BaseException:
        detector.stop()  # describe_suspect stays, because the suspect may be the cause
        raise
    detector.leave()
