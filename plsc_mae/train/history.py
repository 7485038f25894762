"""History of a run: its starts with their environments, its warnings and its ends, for `plsc-mae report`."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import paddle

import plsc_mae
from plsc_mae.errors import Stopped, UserError
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint.folder import HISTORY

MAX_WARNINGS = 200  # of one start; further ones are only counted
PACKAGES = ("numpy", "pillow", "opencv-python-headless", "visualdl")

logger = logging.getLogger(__name__)


class WarningRecorder(logging.Handler):
    """Handler that writes the warnings and errors of plsc_mae to the history of a run.

    It keeps them in memory until `write_with` is called.

    Attributes:
        count: number of warnings so far, including those beyond MAX_WARNINGS, which are not written.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._waiting: list[str] = []
        self._write: Callable[[str], None] | None = None
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message of a log record, or keep it in memory; messages beyond MAX_WARNINGS are only counted."""
        self.count += 1
        if self.count > MAX_WARNINGS:
            return
        if self._write is None:
            self._waiting.append(record.getMessage())
        else:
            self._write(record.getMessage())

    def write_with(self, write: Callable[[str], None]) -> None:
        """Write the messages in memory with `write`, and use it for later ones."""
        self._write = write
        for message in self._waiting:
            write(message)
        self._waiting.clear()


@contextlib.contextmanager
def recording_warnings() -> Iterator[WarningRecorder]:
    """Yield a `WarningRecorder` that receives the warnings of plsc_mae within the context."""
    recorder, root = WarningRecorder(), logging.getLogger("plsc_mae")
    root.addHandler(recorder)
    try:
        yield recorder
    finally:
        root.removeHandler(recorder)


@contextlib.contextmanager
def recorded(
    folder: Path, start: Mapping[str, Any], world: World, position: Callable[[], Mapping[str, int]]
) -> Iterator[None]:
    """Append the start, the warnings and the end of the training within the context to the history in `folder`.

    The main process writes; a process that is killed leaves a start without an end. If the file cannot be written, the
    history is incomplete and training continues.

    Args:
        folder: output folder of the run.
        start: values of the start, such as the checkpoint from which the run resumes.
        world: processes of the run.
        position: returns the current position of the run.
    """
    if not world.is_main:
        yield
        return

    def write(event: str, **values: Any) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with contextlib.suppress(OSError), open(folder / HISTORY, "a", encoding="utf-8") as file:
            file.write(as_json({"event": event, "time": now, **position(), **values}) + "\n")

    write("start", **start, environment=environment(world))
    with contextlib.ExitStack() as stack:
        found = [h for h in logging.getLogger("plsc_mae").handlers if isinstance(h, WarningRecorder)]
        recorder = found[-1] if found else stack.enter_context(recording_warnings())
        recorder.write_with(lambda message: write("warning", message=message))
        try:
            yield
        except Stopped as stop:
            write("end", reason=f"stopped: {stop}")
            raise
        except UserError as error:
            write("end", reason=f"error: {error}")
            raise
        except BaseException as error:
            write("end", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            if recorder.count > MAX_WARNINGS:
                write("warning", message=f"{recorder.count - MAX_WARNINGS} further warnings are not listed")
        write("end", reason="finished")


def environment(world: World) -> dict[str, str]:
    """Return versions, device, number of processes, system and command line of this run by name."""
    versions = {"plsc_mae": plsc_mae.__version__, "Paddle": paddle.__version__, "Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = paddle.device.cuda.get_device_name() if world.is_gpu else f"CPU, {platform.machine()}"
    return {
        **versions,
        "device": device,
        "processes": str(world.processes),
        "system": f"{platform.system()} {platform.release()}",
        "command": " ".join(sys.argv),
    }
