"""Small image folders on disk for the tests of the data pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def smooth_picture(index: int, height: int = 40, width: int = 56) -> Image.Image:
    """Make pictures without hard edges, which JPEG preserves well; each index gives a different picture."""
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return smooth_picture


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """DIR/train with two classes of 11 JPEGs of different sizes: cat/00.jpg .. cat/10.jpg, then dog."""
    for label, name in enumerate(["cat", "dog"]):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for index in range(11):
            smooth_picture(11 * label + index, 40 + index, 56).save(folder / f"{index:02d}.jpg", quality=90)
    return tmp_path / "images"
