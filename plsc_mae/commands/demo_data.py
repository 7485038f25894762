"""`plsc-mae demo-data`: draws the demo data set."""

from __future__ import annotations

import sys

from plsc_mae.config.tools import DemoDataConfig
from plsc_mae.data.demo import CLASSES, make_demo_data


def run(config: DemoDataConfig) -> None:
    """Draw the data set unless it exists, and print its size."""
    summary = make_demo_data(
        config.path,
        image_size=config.image_size,
        train_per_class=config.train_per_class,
        val_per_class=config.val_per_class,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )
    state = "drawn" if summary.created else "already there"
    counts = f"{summary.num_train} training and {summary.num_val} validation images of {len(CLASSES)} classes"
    print(f"{summary.root}: {counts}, {state}")
