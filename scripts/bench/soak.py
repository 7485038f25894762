"""Soak test: many tiny updates with kills and resumes, and the memory, threads, handles and speed over time.

    python scripts/bench/soak.py                    20,000 updates in one process
    python scripts/bench/soak.py --processes 2      the same in two processes
    python scripts/bench/soak.py --updates 2000 --folder /tmp/soak

The run trains a tiny MAE with one loader process, a checkpoint every 500 updates and a k-NN evaluation every 20 epochs.
It is stopped at the updates in STOPS, by SIGKILL and SIGTERM in turns, and continues with --auto_resume. Every second
the script reads process 0 of the run from /proc (Linux only). It writes all samples to samples.csv, prints a table of
the part after the last resume, and exits with code 1 if memory, threads or handles grow. Speed is reported only,
because it depends on other load; the CPU time per update does so less.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

STOPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # of the updates; the part after the last one is the longest
WARM_UP = 0.1  # fraction of a part that is left out, because memory pools and caches fill
IMAGES, BATCH = 120, 2  # 60 updates per epoch
NETWORK = (
    "--model mae_vit_tiny_patch16 --input_size 16 --patch_size 8 --embed_dim 16 --depth 1 --num_heads 2 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 2"
)
RUN = (
    "--vis_freq 0 --knn_freq 20 --knn_k 3 --num_workers 1 --save_ckpt_steps 500 --save_ckpt_freq 40 --keep_last 2 "
    "--print_freq 60 --device cpu --auto_resume"
)
LARGEST_GROWTH = {"memory_mib": 5.0, "threads": 0.5, "handles": 0.5}  # from the first to the last quarter


class Sample(NamedTuple):
    """Measurement of process 0.

    Attributes:
        part: number of the part of the run between two stops, from 0.
        seconds: time since the start of the script.
        update: last logged update.
        memory_mib: resident memory in MiB.
        threads: number of threads.
        handles: number of open file handles.
        cpu_seconds: CPU time since the start of the process.
    """

    part: int
    seconds: float
    update: int
    memory_mib: float
    threads: int
    handles: int
    cpu_seconds: float


class Soak:
    """A training run that is stopped and resumed, and its measurements.

    Args:
        folder: folder of the images and of the run; the samples are written there.
        updates: number of updates.
        processes: number of training processes.
    """

    def __init__(self, folder: Path, updates: int, processes: int) -> None:
        self.folder, self.updates, self.processes = folder, updates, processes
        self.started = time.monotonic()
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Train to the end with all stops."""
        images = f"--image_size 16 --train_per_class {IMAGES // 10} --val_per_class 2"
        subprocess.run([*plsc_mae(), "demo-data", *f"--path {self.folder}/images {images}".split()], check=True)
        ends = [*(int(self.updates * fraction) for fraction in STOPS), self.updates]
        for part, end in enumerate(ends):
            self._train(part, end)

    def _train(self, part: int, end: int) -> None:
        """Start or resume the run, and stop it after the update `end` unless that is the last one."""
        epochs = -(-self.updates * BATCH * self.processes // IMAGES)
        flags = f"{NETWORK} {RUN} --epochs {epochs} --batch_size {BATCH} --max_train_step {self.updates}"
        flags += f" --data_path {self.folder}/images --output_dir {self.folder}/run"
        launch = ["launch", "--nproc_per_node", str(self.processes), "--log_dir", str(self.folder / f"log{part}")]
        words = [*plsc_mae(), *(launch if self.processes > 1 else []), "pretrain", *flags.split()]
        with open(self.folder / "output.txt", "a") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        number = signal.SIGTERM if part % 2 else signal.SIGKILL
        while process.poll() is None:
            self._measure(part, process.pid)
            if end < self.updates and self.last_update() >= end:
                os.kill(process.pid if number == signal.SIGTERM else self._main_process(process.pid), number)
                break
            time.sleep(1)
        code = process.wait()
        print(f"part {part}: to update {self.last_update()}, exit code {code}", flush=True)
        if end == self.updates and code:
            raise SystemExit((self.folder / "output.txt").read_text()[-4000:])

    def _main_process(self, pid: int) -> int:
        """Return the pid of process 0; `pid` is that of the command, which is a launcher if there are several."""
        if self.processes == 1:
            return pid
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                is_main = parent == pid and b"PADDLE_TRAINER_ID=0" in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # the process has ended
            if is_main:
                return int(entry.name)
        return pid

    def _measure(self, part: int, pid: int) -> None:
        entry = Path(f"/proc/{self._main_process(pid)}")
        try:
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
            ticks = (entry / "stat").read_text().rpartition(")")[2].split()[11:13]
            handles = len(os.listdir(entry / "fd"))
        except OSError:
            return  # the process has ended
        cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        memory = int(status.get("VmRSS", "0 kB").split()[0]) / 1024
        now = time.monotonic() - self.started
        self.samples.append(Sample(part, now, self.last_update(), memory, int(status["Threads"]), handles, cpu))

    def last_update(self) -> int:
        """Return the last logged update."""
        path = self.folder / "run/train.jsonl"
        lines = path.read_bytes()[-4096:].splitlines() if path.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that is being written
        return 0

    def write(self) -> None:
        """Write all samples to samples.csv."""
        with open(self.folder / "samples.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Sample._fields)
            writer.writerows(self.samples)


def plsc_mae() -> list[str]:
    """Return the words that start the program."""
    return [sys.executable, "-m", "plsc_mae"]


def summarize(samples: Sequence[Sample]) -> Iterator[tuple[str, float, float, float]]:
    """Yield (quantity, mean of the first quarter, mean of the last quarter, slope per 1,000 updates) of one part.

    The first tenth of the part is left out. Speeds are those between one log line and the next.
    """
    first, last = samples[0].update, samples[-1].update
    steady = [sample for sample in samples if sample.update >= first + WARM_UP * (last - first)]
    for name in LARGEST_GROWTH:
        yield name, *_trend([sample.update for sample in steady], [getattr(sample, name) for sample in steady])
    logged = [a for a, b in itertools.pairwise(steady) if a.update != b.update]
    pairs = list(itertools.pairwise(logged))
    at = [b.update for _, b in pairs]
    yield "updates_per_second", *_trend(at, [(b.update - a.update) / (b.seconds - a.seconds) for a, b in pairs])
    cpu = [1000 * (b.cpu_seconds - a.cpu_seconds) / (b.update - a.update) for a, b in pairs]
    yield "cpu_ms_per_update", *_trend(at, cpu)


def _trend(updates: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean of the first quarter, mean of the last quarter, least-squares slope per 1,000 updates)."""
    quarter = max(1, len(values) // 4)
    slope = float(np.polyfit(updates, values, 1)[0]) * 1000
    return float(np.mean(values[:quarter])), float(np.mean(values[-quarter:])), slope


def main() -> int:
    """Run the soak test, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000, help="number of updates")
    parser.add_argument("--processes", type=int, default=1, help="number of training processes")
    parser.add_argument("--folder", type=Path, help="empty folder of the run [a temporary one]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(folder, given.updates, given.processes)
        soak.run()
        soak.write()
    part = [sample for sample in soak.samples if sample.part == len(STOPS) and sample.update > 0]
    print(f"updates {part[0].update} to {part[-1].update}, {len(part)} samples, {len(STOPS)} resumes before")
    print("| quantity | first quarter | last quarter | slope per 1,000 updates |\n|---|--:|--:|--:|")
    grown = False
    for name, before, after, slope in summarize(part):
        print(f"| {name} | {before:.2f} | {after:.2f} | {slope:+.4f} |")
        grown |= after - before > LARGEST_GROWTH.get(name, float("inf"))
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
