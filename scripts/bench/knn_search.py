"""Speed and memory of the k-NN search, beside the peak of a plain matrix product in the same process, in turns.

python scripts/bench/knn_search.py                  a bank of 200,000 features, 4,000 queries
python scripts/bench/knn_search.py --imagenet       1,281,167 features and 50,000 queries of 768 numbers

The bank is written to a float16 file first and memory-mapped, as `plsc-mae knn --save_path DIR --dtype float16` does.
Its rows come in the order of classes, as in a folder. The answers are compared with those of a plain computation:
the float32 product of some queries with the whole bank, sorted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plsc_mae  # isort: skip  # settings of the CPU, before NumPy is used
import numpy as np

from plsc_mae.analysis.knn import nearest_neighbors, unit_rows
from plsc_mae.runtime import available_cores

SIDE = 4096  # of the square matrices of the plain product
CLASSES = 1000
CHECKED = 64  # queries
ROWS = 16384  # that are drawn at a time


def write_features(path: Path, count: int, width: int, centers: np.ndarray, seed: int) -> np.memmap:
    """Write features in the order of their classes, a center plus noise, and return them as a read-only memory map."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for start in range(0, count, ROWS):
            rows = np.arange(start, min(start + ROWS, count))
            noise = rng.standard_normal((len(rows), width), np.float32)
            file.write((centers[rows * CLASSES // count] + noise).astype(np.float16).data)
    return np.memmap(path, np.float16, "r", shape=(count, width))


def memory(name: str) -> float:
    """Return an entry of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Record the peak of the anonymous memory in MiB, which leaves out mapped files, in a list of one number."""
    peak, stop = [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], memory("RssAnon"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


class Clocks:
    """Elapsed time and processor time of a block, in seconds.

    Processor time is that of all threads; other programs do not change it much, but it hides threads that have no work.
    """

    def __enter__(self) -> Clocks:
        self._start = np.array([time.perf_counter(), time.process_time()])
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = np.array([time.perf_counter(), time.process_time()]) - self._start


def product_speed() -> np.ndarray:
    """Return the GFLOP/s of a plain float32 product of two square matrices, by elapsed and by processor time."""
    left, right = (np.ones((SIDE, SIDE), np.float32) for _ in range(2))
    out = np.empty((SIDE, SIDE), np.float32)
    seconds = []
    for _ in range(3):
        with Clocks() as clocks:
            np.matmul(left, right, out=out)
        seconds.append(clocks.seconds)
    return 2 * SIDE**3 / np.min(seconds, axis=0) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=200_000, help="features of the bank")
    parser.add_argument("--queries", type=int, default=4_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--k", type=int, default=200, help="neighbors")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--imagenet", action="store_true", help="1,281,167 features, 50,000 queries, one repeat")
    parser.add_argument("--folder", default=None, help="folder for the file of the bank [a temporary one]")
    args = parser.parse_args()
    if args.imagenet:
        args.bank, args.queries, args.width, args.repeats = 1_281_167, 50_000, 768, 1
    print(f"plsc_mae {plsc_mae.__version__}, NumPy {np.__version__}, {available_cores()} cores")
    centers = np.random.default_rng(0).standard_normal((CLASSES, args.width), np.float32)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bank = write_features(Path(folder) / "bank", args.bank, args.width, centers, 1)
        queries = np.array(write_features(Path(folder) / "queries", args.queries, args.width, centers, 2))
        shares = []
        for _ in range(args.repeats):
            before = product_speed()
            with peak_memory() as peak, Clocks() as clocks:
                similarities, neighbors = nearest_neighbors(bank, queries, args.k)
            plain = np.maximum(before, product_speed())
            speed = 2 * args.bank * args.queries * args.width / clocks.seconds / 1e9
            shares.append(speed / plain)
            print(
                f"{args.bank} x {args.width} against {args.queries}, k {args.k}: {clocks.seconds[0]:.1f} s, "
                f"{speed[0]:.0f} of {plain[0]:.0f} GFLOP/s; per second of processor time {speed[1]:.0f} of "
                f"{plain[1]:.0f}; peak memory {peak[0]:.0f} MiB beside mapped files",
                flush=True,
            )
        elapsed, processor = np.median(shares, axis=0)
        print(f"median share of the plain product: {elapsed:.0%} by elapsed time, {processor:.0%} by processor time")
        check(bank, queries[:CHECKED], similarities[:CHECKED], neighbors[:CHECKED], args.k)


def check(bank: np.memmap, queries: np.ndarray, similarities: np.ndarray, neighbors: np.ndarray, k: int) -> None:
    """Compare with the whole product, sorted, and print the differences."""
    whole = np.concatenate(
        [unit_rows(queries) @ unit_rows(bank[start : start + ROWS]).T for start in range(0, len(bank), ROWS)], axis=1
    )
    order = np.argsort(-whole, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(whole, order, axis=1)
    print(
        f"{len(queries)} queries against the sorted product: largest difference of a similarity "
        f"{np.abs(similarities - expected).max():.1e}, {np.mean(neighbors == order):.4%} of the neighbors equal"
    )


if __name__ == "__main__":
    main()
