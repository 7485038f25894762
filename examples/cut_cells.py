"""Cut the cells out of gray microscope fields, and later join the predictions for the cells of each field.

python cut_cells.py fields labels.csv cells      # cells/*.png and cells/cells.csv: image, class, field, ...
python cut_cells.py --join predictions.csv       # the class of every field, from `plsc-mae predict --topk CLASSES`
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

SIDE, SMALLEST = 64, 100  # side of a picture, and least area of a cell, in pixels


def cut(image: np.ndarray) -> list[np.ndarray]:
    """Return squares [SIDE, SIDE] around the bright spots of `image` [h, w], found by Otsu's threshold."""
    bright = cv2.threshold(cv2.GaussianBlur(image, (0, 0), 2), 0, 1, cv2.THRESH_OTSU)[1].astype(np.uint8)
    _, _, spots, centers = cv2.connectedComponentsWithStats(bright)
    large = spots[1:, cv2.CC_STAT_AREA] >= SMALLEST  # spot 0 is the background
    padded = cv2.copyMakeBorder(image, *[SIDE // 2] * 4, cv2.BORDER_REFLECT_101)
    return [padded[y : y + SIDE, x : x + SIDE] for x, y in centers[1:][large].round().astype(int)]


def cut_all(fields: Path, labels: Path, cells: Path) -> None:
    """Write the cells of all fields and their table. `labels` has a heading, then a file and its class per row."""
    cells.mkdir()
    (_, _, *columns), *listed = csv.reader(labels.open(newline="", encoding="utf-8-sig"))
    rows = [["image", "class", "field", *columns]]
    for file, label, *others in filter(None, listed):
        if (image := cv2.imread(str(fields / file), cv2.IMREAD_ANYDEPTH)) is None:
            print(f"{fields / file} cannot be read, left out")
            continue
        for number, cell in enumerate(cut(image)):
            rows.append([f"{file.replace('/', '-')}_{number}.png", label, file, *others])
            cv2.imwrite(str(cells / rows[-1][0]), cell)
    with (cells / "cells.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows(rows)
    print(f"{len(rows) - 1} cells in {cells}")


def join(predictions: Path) -> None:
    """Print the class of every field: the one with the highest sum of the probabilities of its cells."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in csv.DictReader(predictions.open(newline="", encoding="utf-8-sig")):
        sums[Path(row["image"]).name.rpartition("_")[0]][row["class"]] += float(row["probability"])
    print(*(f"{field},{max(classes, key=classes.__getitem__)}" for field, classes in sorted(sums.items())), sep="\n")


if len(sys.argv) == 4:
    cut_all(*map(Path, sys.argv[1:]))
elif len(sys.argv) == 3:
    join(Path(sys.argv[2]))
else:
    print(__doc__)
