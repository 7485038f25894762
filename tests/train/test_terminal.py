"""A run on a terminal: an overview, a progress bar below whole lines, and an interrupt that explains itself."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import termios
import time

import pytest

from plsc_mae.cli import main
from plsc_mae.train.checkpoint.file import read_footer

pytestmark = [pytest.mark.compat, pytest.mark.long]


class Terminal:
    """A pseudo-terminal; `text` is what programs have written to it."""

    def __init__(self, columns: int) -> None:
        self.reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(writer, "w")
        self.text = ""

    def read(self, seconds: float = 0.05) -> bool:
        """Read what has been written; return whether there was anything."""
        if not select.select([self.reader], [], [], seconds)[0]:
            return False
        self.text += os.read(self.reader, 1 << 16).decode(errors="replace")
        return True

    def wait_for(self, pattern: str, process) -> None:
        deadline = time.monotonic() + 120
        while not re.search(pattern, self.text):
            self.read()
            assert process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text

    def end(self, process) -> int:
        """Read to the end and return the exit code."""
        while process.poll() is None:
            self.read()
        while self.read():
            pass
        self.stream.close()
        return process.wait()

    def lines(self) -> list[str]:
        """Return the lines as they look in the end: what follows a carriage return overwrites, bars are cleared."""
        shown = []
        for line in self.text.split("\r\n"):
            parts = [part.removeprefix("\x1b[K") for part in line.split("\r")]
            shown.append(next((part.rstrip() for part in reversed(parts) if part.strip()), ""))
        return shown


@pytest.fixture
def start(run, fork_server):
    """Return a function that starts a run on a terminal of some columns."""

    def begin(name: str, flags: str, columns: int):
        terminal = Terminal(columns)
        words = ["-m", "plsc_mae", run.command, *run.arguments(name, flags)]
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        return terminal, fork_server.start(words, env=environ, stdout=terminal.stream, stderr=terminal.stream)

    return begin


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_run_with_bad_images_that_is_interrupted(run, start, images):
    shutil.copytree(images, run.folder / "bad")
    for path in sorted((run.folder / "bad/train").glob("*/*.jpg"))[::9]:
        path.write_text("no image\n")
    flags = f"--batch_size 12 --epochs 400 --bad_image skip --num_workers 2 --data_path {run.folder / 'bad'}"
    terminal, process = start("out", f"{flags} --print_freq 100", 100)
    terminal.wait_for(r"epoch 2: ", process)
    process.send_signal(signal.SIGINT)
    assert terminal.end(process) == 130

    lines = terminal.lines()
    paths = str(run.folder)  # too long for any line, and never broken
    assert all(len(line) < 100 for line in lines if paths not in line)
    assert_overview(lines)
    # The bar shows what is between the lines of whole epochs.
    printed = [line for line in lines if re.match(r"epoch \d+ ", line)]
    assert [line.partition(": ")[0] for line in printed[:2]] == ["epoch 0 done (1/400)", "epoch 1 done (2/400)"]
    assert all(
        re.fullmatch(r"epoch \d+ done \(\d+/400\): loss .* time \S+ eta \d+:\d\d:\d\d", line) for line in printed
    )
    assert re.search(r"epoch 1:  *\d+%\|.*\d+/10, loss \S+, \S+ img/s, run ends in \d+:\d\d:\d\d", terminal.text)
    for line in lines:
        for start_of_line in ("warning: ", "plsc-mae: ", "saved "):
            assert line.find(start_of_line) <= 0, line
    assert sum(line.startswith("warning: ") for line in lines) >= 1
    assert "\n\rplsc-mae" not in terminal.text
    assert "\r\nplsc-mae: SIGINT: the run will save and stop" in terminal.text
    latest = run.folder / "out/checkpoint-latest.pd"
    said = " ".join(" ".join(line.strip() for line in lines).split())
    step = read_footer(latest)["step"]
    assert re.search(rf"stopped by SIGINT: epoch \d+, \d+ of 10 iterations, step {step}; saved {latest};", said)
    *_, command = (line for line in lines if line)
    assert command.endswith(f" pretrain --config {run.folder / 'out/config.yaml'} --auto_resume")
    words = shlex.split(command)
    assert main([*words[words.index("pretrain") :], "--max_train_step", str(step + 1)]) == 0
    assert read_footer(latest)["step"] == step + 1


def assert_overview(lines: list[str]) -> None:
    """Assert that each label of the overview begins a line of its own, in this order."""
    labels = ["data", "network", "recipe", "options", "memory", "time", "output", "stop"]
    assert [line.split()[0] for line in lines if re.match(r"  \w+  +\S", line)] == labels


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_an_interrupt_before_training(run, start):
    terminal, process = start("out", "--batch_size 12 --epochs 400", 80)
    terminal.wait_for(r"pretrain of mae_vit_tiny", process)
    process.send_signal(signal.SIGINT)
    assert terminal.end(process) == 130
    said = " ".join(" ".join(terminal.lines()).split())
    assert re.search(r"plsc-mae: (interrupted: training had not started|stopped by SIGINT: epoch 0, \d of)", said)
    assert said.endswith(("the same command starts again", "--auto_resume"))
