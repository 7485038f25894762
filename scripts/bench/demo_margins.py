"""Repeat the measurements behind the numbers of the demo recipes: three seeds of each.

    python scripts/bench/demo_margins.py --folder /tmp/demo       everything; a second call continues
    python scripts/bench/demo_margins.py --recipes mae --seeds 0  one run

The script draws both kinds of demo data and pre-trains the recipes of `configs/demo` with every seed. On the
validation pictures it measures k-NN and linear accuracy of mean features (`compare`, on shapes), mean IoU of the
segmentation probe (`segprobe`, on objects) and the PSNR on hidden patches (`reconstruct`, on objects). The references
are raw pixels, random weights with three seeds, and the trivial predictors. It prints tables of all numbers and of the
wall time of every step. The exit code is 1 if a trained seed is not better than every reference by the margins in
MARGINS.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RECIPES = ("mae", "cae", "simmim")  # for shapes
RANDOM_SEEDS = (0, 1, 2)
PIXELS = 32  # side of the raw pixels
PICTURED = "mae_objects"  # the recipe for objects: its patches are probed by segmentation, its pictures by PSNR
PSNR_IMAGES = 200
# The worst trained seed must be better than the best seed of random weights, and than raw pixels, by these margins.
MARGINS = {"knn": 5.0, "linear": 3.0, "segprobe linear": 2.0, "segprobe k-NN": 2.0, "psnr": 1.0}
PSNR_VALUE = re.compile(r"([^:,]+) (-?[\d.]+) dB")


class Margins:
    """The measurements in a folder, which holds the results of finished steps.

    Args:
        folder: folder of the data, the runs and the results.
        recipes: recipes below `configs/demo`.
        seeds: seeds of the training.
    """

    def __init__(self, folder: Path, recipes: Sequence[str], seeds: Sequence[int]) -> None:
        self.folder, self.recipes, self.seeds = folder, recipes, seeds
        self.failures: list[str] = []

    def run(self) -> None:
        """Train and measure everything that is missing, then print the tables."""
        self._step("shapes", f"demo-data {self.folder}/shapes")
        self._step("objects", f"demo-data {self.folder}/objects --kind objects --masks")
        pixels = f"--pixels {PIXELS} --crop_pct 1 --save_path {self.folder}/pixels.json"
        self._step("pixels", f"compare --data_path {self.folder}/shapes {pixels}")
        for seed in self.seeds:
            for recipe in self.recipes:
                self._measure(recipe, seed)
        self._print_accuracies([recipe for recipe in self.recipes if recipe != PICTURED])
        if PICTURED in self.recipes:
            self._print_segmentation()
            self._print_psnr()
        print("\n| step | seconds |\n|---|--:|")
        for path in sorted(self.folder.glob("*.seconds")):
            print(f"| {path.stem} | {path.read_text()} |")

    def _measure(self, recipe: str, seed: int) -> None:
        """Train with a seed and evaluate; with the first seed, evaluate random weights of the same sizes too."""
        name = f"{recipe}-{seed}"
        images = f"{self.folder}/objects/images" if recipe == PICTURED else f"{self.folder}/shapes"
        options = f"--config demo/{recipe} --seed {seed} --data_path {images} --output_dir {self.folder}/{name}"
        self._step(name, f"pretrain {options} --auto_resume")
        model = max((self.folder / name).glob("checkpoint-*.pd"), key=lambda path: path.stat().st_mtime)
        random = seed == self.seeds[0]
        if recipe == PICTURED:
            self._probe(name, model, random)
            panels = f"--save_path {self.folder}/{name}/panels --max_images {PSNR_IMAGES}"
            self._step(f"{name}.reconstruct", f"reconstruct --model_path {model} --img_path {images}/val {panels}")
        else:
            table = (
                f"compare --model_path {model} --data_path {images} --crop_pct 1 --save_path {self.folder}/{name}.json"
            )
            seeds = f"--random_weights --seeds {' '.join(map(str, RANDOM_SEEDS))}" if random else ""
            self._step(f"{name}.compare", f"{table} {seeds}")

    def _probe(self, name: str, model: Path, random: bool) -> None:
        probe = f"segprobe --model_path {model} --data_path {self.folder}/objects --max_train_patches 20000 --save_path"
        self._step(f"{name}.segprobe", f"{probe} {self.folder}/{name}/segmentation")
        for number in RANDOM_SEEDS if random else ():
            weights = f"{self.folder}/{name}/segmentation-random-{number} --random_weights --seed {number}"
            self._step(f"{name}.segprobe-random-{number}", f"{probe} {weights}")

    def _step(self, name: str, words: str) -> None:
        """Run a command of plsc-mae unless an earlier call has finished it; keep its output and its wall time."""
        done, output = self.folder / f"{name}.seconds", self.folder / f"{name}.txt"
        if done.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with output.open("w") as file:
            code = subprocess.call(
                [sys.executable, "-m", "plsc_mae", *words.split()], stdout=file, stderr=subprocess.STDOUT
            )
        if code:
            raise SystemExit(f"plsc-mae {words}: exit code {code}; see {output}")
        done.write_text(f"{time.monotonic() - started:.0f}")
        print(f"{name}: {done.read_text()} s", flush=True)

    def _print_accuracies(self, recipes: Sequence[str]) -> None:
        """Print k-NN and linear accuracies in %, and check their margins."""
        (pixels,) = json.loads((self.folder / "pixels.json").read_text())
        print("\n| features | k-NN | linear |\n|---|--:|--:|")
        print(f"| raw pixels | {_row(pixels['knn'])} | {_row(pixels['linear'])} |")
        for recipe in recipes:
            rows = [json.loads((self.folder / f"{recipe}-{seed}.json").read_text()) for seed in self.seeds]
            random = rows[0][0]
            trained = {name: [row[-1][name][0] for row in rows] for name in ("knn", "linear")}
            print(f"| {recipe}: random weights | {_row(random['knn'])} | {_row(random['linear'])} |")
            print(f"| {recipe} | {_row(trained['knn'])} | {_row(trained['linear'])} |")
            for name, values in trained.items():
                self._check(f"{recipe}, {name}", values, [*random[name], *pixels[name]], MARGINS[name])

    def _print_segmentation(self) -> None:
        """Print the mean IoU in %, and check its margins."""
        trained = [self._ious(f"{PICTURED}-{seed}/segmentation") for seed in self.seeds]
        random = [self._ious(f"{PICTURED}-{self.seeds[0]}/segmentation-random-{seed}") for seed in RANDOM_SEEDS]
        print("\n| patch features | mean IoU, linear | mean IoU, k-NN |\n|---|--:|--:|")
        for name, values in (("random weights", random), (PICTURED, trained)):
            print(f"| {name} | {' | '.join(_row(column) for column in zip(*values, strict=True))} |")
        for number, kind in enumerate(("segprobe linear", "segprobe k-NN")):
            pair = ([values[number] for values in rows] for rows in (trained, random))
            self._check(f"{PICTURED}, {kind}", *pair, MARGINS[kind])

    def _ious(self, folder: str) -> tuple[float, float]:
        found = json.loads((self.folder / folder / "results.json").read_text())
        return found["linear"]["mean_iou"], found["knn"]["mean_iou"]

    def _print_psnr(self) -> None:
        """Print the PSNR on hidden patches in dB, and check its margins."""
        print("\n| seed | PSNR on hidden patches in dB |\n|---|---|")
        for seed in self.seeds:
            (line,) = re.findall("PSNR .*: (.*)", (self.folder / f"{PICTURED}-{seed}.reconstruct.txt").read_text())
            (_, own), *others = PSNR_VALUE.findall(line)
            print(f"| {seed} | {line} |")
            self._check(f"{PICTURED}, PSNR", [float(own)], [float(value) for _, value in others], MARGINS["psnr"])

    def _check(self, name: str, trained: Sequence[float], references: Sequence[float], margin: float) -> None:
        found = min(trained) - max(references)
        if found < margin:
            self.failures.append(f"{name}: margin {found:.2f}, expected at least {margin}")


def _row(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    """Measure and exit with code 1 if a margin is too small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo-margins"))
    parser.add_argument("--recipes", nargs="+", choices=(*RECIPES, PICTURED), default=(*RECIPES, PICTURED))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    options = parser.parse_args()
    margins = Margins(options.folder, options.recipes, options.seeds)
    margins.run()
    if margins.failures:
        raise SystemExit("\n".join(margins.failures))
    print("\nall margins hold")


if __name__ == "__main__":
    main()
