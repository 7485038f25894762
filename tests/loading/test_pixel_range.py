"""The range of pixel values of runs and tools: given, automatic, or that of a checkpoint."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from plsc_mae.config import PRETRAIN
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.imagefolder import find_images
from plsc_mae.errors import ConfigError
from plsc_mae.loading.pixel_range import choose, parse, settle

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint that stores a range."""

    def write(values) -> str:
        path = tmp_path / "checkpoint-3.pd"
        content = {"model": {"w": np.zeros(2, np.float32)}, "args": {"pixel_range": values}}
        path.write_bytes(pickle.dumps(content, protocol=4))
        return str(path)

    return write


@pytest.fixture
def images(tmp_path):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "a.png")
    return find_images(tmp_path, "train")


@pytest.mark.parametrize(
    "values",
    [
        ("5",),
        ("3", "3"),
        ("4", "1"),
        ("a", "b"),
        ("auto", "1"),
        ("0", "1", "2"),
        ("0", "1e400"),
        ("-inf", "0"),
        ("nan", "1"),
    ],
)
def test_malformed_ranges(values):
    with pytest.raises(ConfigError, match=rf"--pixel_range {' '.join(values)}: expected two numbers.* auto"):
        parse(values)


def test_the_range_of_a_checkpoint_is_the_default(checkpoint, images, messages):
    path = checkpoint(["0", "1023"])
    assert choose(None, [path], images) == (0, 1023)
    assert choose(("0", "1023"), [path], images) == (0, 1023)
    assert not messages
    assert choose(("0", "4095"), [path], images) == (0, 4095)
    assert path in messages[0]
    assert "0 to 1023, not 0 to 4095" in messages[0]


def test_files_without_a_range(checkpoint, images, tmp_path, messages):
    (tmp_path / "broken.pd").write_bytes(b"x")
    for path in (checkpoint(None), str(tmp_path / "broken.pd"), str(tmp_path / "none.pd"), "https://host/file.pth"):
        assert choose(None, [path], images) is None
    assert choose(("-1024", "3071"), [], None) == PixelRange(-1024, 3071)
    assert choose(("auto",), [], images) == (0, 4095)
    assert not [text for text in messages if "trained" in text]


def test_a_run_stores_numbers(checkpoint, images):
    """So that a later run on other images has the same range."""
    given = PRETRAIN["mae"](model="mae_vit_tiny_patch16", pixel_range=("auto",))
    assert settle(given, images, None).pixel_range == ("0", "4095")
    plain = PRETRAIN["mae"](model="mae_vit_tiny_patch16")
    assert settle(plain, None, None).pixel_range is None
    assert settle(plain, None, checkpoint(["0", "255"])).pixel_range == ("0", "255")
