"""The range of pixel values of runs and tools: given, automatic, or that of a checkpoint."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from plsc_mae.config import PRETRAIN
from plsc_mae.config.features import EmbedConfig
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.loading.pixel_settings import choose, parse, read_stats, settle

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


def reading(given=None, origins=(), images=None) -> PixelRange | None:
    """The range that an option and a list of checkpoints give."""
    config = EmbedConfig(model_path="x", data_path="x", pixel_range=given)
    return choose(config, list(origins), images).pixel_format.range


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
    assert reading(None, [path], images) == (0, 1023)
    assert reading(("0", "1023"), [path], images) == (0, 1023)
    assert not messages
    assert reading(("0", "4095"), [path], images) == (0, 4095)
    assert path in messages[0]
    assert "0 to 1023, not 0 to 4095" in messages[0]


def test_files_without_a_range(checkpoint, images, tmp_path, messages):
    (tmp_path / "broken.pd").write_bytes(b"x")
    for path in (checkpoint(None), str(tmp_path / "broken.pd"), str(tmp_path / "none.pd"), "https://host/file.pth"):
        assert reading(None, [path], images) is None
    assert reading(("-1024", "3071")) == PixelRange(-1024, 3071)
    assert reading(("auto",), [], images) == (0, 4095)
    assert not [text for text in messages if "trained" in text]


def test_a_run_stores_numbers(checkpoint, images):
    """So that a later run on other images has the same range."""
    given = PRETRAIN["mae"](model="mae_vit_tiny_patch16", pixel_range=("auto",))
    assert settle(given, images, None).pixel_range == ("0", "4095")
    plain = PRETRAIN["mae"](model="mae_vit_tiny_patch16")
    assert settle(plain, None, None).pixel_range is None
    assert settle(plain, None, checkpoint(["0", "255"])).pixel_range == ("0", "255")


class TestChannels:
    """Channels, bands and statistics: the option, the file of --stats, the checkpoint, the default."""

    @pytest.fixture
    def stats(self, tmp_path):
        values = {"in_chans": 2, "bands": [3, 1], "pixel_range": [0, 4095], "mean": [0.1, 0.2], "std": [0.3, 0.4]}
        (tmp_path / "stats.json").write_text(json.dumps(values))
        return str(tmp_path / "stats.json")

    @pytest.fixture
    def stored(self, tmp_path):
        values = {"in_chans": 2, "pixel_range": ["0", "1023"], "mean": [0.5, 0.6], "std": [0.7, 0.8]}
        content = {"model": {"w": np.zeros(2, np.float32)}, "args": values}
        (tmp_path / "two.pd").write_bytes(pickle.dumps(content, protocol=4))
        return str(tmp_path / "two.pd")

    def choose(self, origins=(), **options):
        return choose(EmbedConfig(model_path="x", data_path="x", **options), list(origins), None)

    def test_a_file_of_stats(self, stats):
        found = self.choose(stats=stats)
        assert found.pixel_format == PixelFormat(2, (3, 1), PixelRange(0, 4095))
        assert (found.mean, found.std) == ((0.1, 0.2), (0.3, 0.4))
        assert self.choose(stats=stats, mean=(0.9,), std=(0.8,)).mean == (0.9, 0.9)

    def test_a_run_that_contradicts_the_stats(self, stats):
        for options, words in (({"bands": (1, 3)}, "bands 1 3"), ({"pixel_range": ("0", "1")}, "0 to 4095")):
            with pytest.raises(ConfigError, match=rf"stats\.json.*{words}"):
                self.choose(stats=stats, **options)

    def test_other_files(self, tmp_path):
        (tmp_path / "a.json").write_text("[]")
        for name in ("a.json", "none.json"):
            with pytest.raises(DataError, match=name):
                self.choose(stats=str(tmp_path / name))

    def test_a_checkpoint(self, stored):
        assert self.choose([stored]).pixel_format == PixelFormat(2, (), PixelRange(0, 1023))
        assert self.choose([stored], bands=(5, 4)).mean == (0.5, 0.6)
        assert self.choose([stored], in_chans=4).mean is None

    def test_rgb_stays_as_it_is(self, images):
        given = PRETRAIN["mae"](model="mae_vit_tiny_patch16")
        assert settle(given, images, None) == given


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"in_chans": Infinity}', '{"in_chans": "three"}'])
def test_other_files_are_no_stats(tmp_path, content):
    path = tmp_path / "stats.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path} was not written by `plsc-mae stats`"):
        read_stats(str(path))


@pytest.mark.parametrize(("present", "absent"), [("mean", "std"), ("std", "mean")])
def test_stats_need_both_mean_and_std(tmp_path, present, absent):
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"in_chans": 2, present: [0.5, 0.25]}))
    with pytest.raises(DataError, match=f"{path} has {present} but no {absent}"):
        read_stats(str(path))
