"""Processor time per training image of several data sets of the same images, measured in turns.

    python scripts/bench/packed_data.py DIR DST DST256

Each image is read, decoded, cropped at random and resized to 224 pixels in one thread. The turns of the data sets
alternate, so that other programs on the machine slow all of them. The first data set is the reference of the ratios.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from plsc_mae.data.listing import list_images
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.transforms import RandomCropFlip

TURNS, IMAGES, SIDE = 8, 12, 224


def main(paths: list[str]) -> None:
    """Measure the data sets with both backends and print medians and ratios."""
    crop = RandomCropFlip((SIDE, SIDE))
    lists = {path: list_images(path, "train") for path in paths}
    for backend in ("pil", "opencv"):
        spent: dict[str, list[float]] = {path: [] for path in paths}
        for turn in range(TURNS):
            for path, images in lists.items():
                started = time.process_time()
                for number in range(IMAGES):
                    crop(images.open(number, backend), sample_rng(0, turn, number))
                spent[path].append((time.process_time() - started) / IMAGES * 1e3)
        reference = np.array(spent[paths[0]])
        for path, values in spent.items():
            ratio = np.median(reference / np.array(values))
            low, high = min(values), max(values)
            print(f"{backend:6} {path}: {np.median(values):.2f} ms ({low:.2f} to {high:.2f}), ratio {ratio:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
