"""`plsc-mae demo-data`: draw the demo data set and say how far its raw pixels get."""

from __future__ import annotations

import sys

from plsc_mae.config.tools import DemoDataConfig
from plsc_mae.data.demo import CLASSES, make_demo_data, raw_pixel_knn


def run(config: DemoDataConfig) -> None:
    """Draw the data set, or find it there already, and print the k-NN accuracy of raw pixels."""
    summary = make_demo_data(
        config.path,
        image_size=config.image_size,
        train_per_class=config.train_per_class,
        val_per_class=config.val_per_class,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )
    chance = 100 / len(CLASSES)
    state = "drawn" if summary.created else "already there"
    print(f"{summary.root}: {summary.num_train} training and {summary.num_val} validation images, {state}")
    print(f"k-NN (k=10) of raw pixels, train -> val: {raw_pixel_knn(config.path):.1f} %, chance {chance:.1f} %")
