"""Export to Paddle Inference: the outputs are checked by the command itself, and the example runs on a picture."""

from __future__ import annotations

import dataclasses
import runpy

import numpy as np
import pytest
from PIL import Image

from plsc_mae.config.export import ExportConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD, ResizeCenterCrop
from plsc_mae.export.content import open_content
from plsc_mae.export.example import example_text
from plsc_mae.export.targets import load_target

pytestmark = pytest.mark.compat
LIMIT = 1e-5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mae", "encoder"),
        pytest.param("cae", "encoder", marks=pytest.mark.once),
        pytest.param("simmim", "encoder", marks=pytest.mark.once),
        ("cae_attentive", "classifier"),
        ("mae", "reconstruction"),
        pytest.param("cae", "reconstruction", marks=pytest.mark.slow),
        pytest.param("simmim", "reconstruction", marks=pytest.mark.slow),
    ],
)
def test_outputs_are_those_of_the_network(export, name, part):
    out, described = export(name, "inference", "--what", part)
    assert described["part"] == part
    found = described["verified"]["differences"]
    assert set(found) == {output["name"] for output in described["outputs"]}
    assert max(found.values()) <= LIMIT
    assert described["inputs"][0]["shape"] == ["B", 3, 24, 24]
    assert {file.name for file in out.iterdir()} == set(described["files"])


def test_tables_have_the_target_size(export, file_of):
    """Positions and relative positions are resized once, at export."""
    _, described = export("cae_classifier", "inference", "--input_size", "32", "24")
    assert described["encoder"]["patches"] == [4, 3]
    assert described["verified"]["differences"]["logits"] <= LIMIT


def test_the_example_prepares_images_as_the_suite_does(export, tmp_path):
    """The example reads a picture as evaluation does, and needs no plsc_mae."""
    out, described = export("mae_classifier", "inference")
    assert described["verified"]["differences"]["logits"] <= LIMIT
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, [50, 37, 3], np.uint8)).save(picture)
    example = runpy.run_path(str(out / "example.py"))
    assert "plsc_mae" not in (out / "example.py").read_text()
    view = ResizeCenterCrop((24, 24), described["preprocessing"]["shorter_side"])
    pixels = view(open_image(str(picture), "pil"), np.random.default_rng(0))["image"]
    expected = (pixels / np.float32(255) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    np.testing.assert_allclose(example["preprocess"](picture)[0], expected.transpose(2, 0, 1), atol=1e-6)
    assert example["run"](example["load"](), example["preprocess"](picture))["logits"].shape == (1, 5)
    assert (out / "classes.txt").read_text().split() == list("01234")


@pytest.mark.parametrize(
    ("dtype", "pixel_format", "difference"),
    [
        ("uint16", PixelFormat(2, (4, 2), PixelRange(100, 4095)), 1e-5),
        ("float32", PixelFormat(5, (), PixelRange(-1, 4096)), 1e-5),
        ("uint8", PixelFormat(5), 0),
    ],
)
def test_the_example_prepares_arrays_as_the_suite_does(file_of, tmp_path, dtype, pixel_format, difference):
    config = ExportConfig(
        target="inference", model_path=str(file_of("mae")), save_path="unused", num_heads=3, decoder_num_heads=2
    )
    rgb = open_content(config, ("encoder",))
    numbers = (0.5,) * pixel_format.channels
    content = dataclasses.replace(rgb, pixel_format=pixel_format, mean=numbers, std=numbers)
    (tmp_path / "example.py").write_text(example_text(load_target("inference"), content))
    values = np.random.default_rng(0).integers(0, 4096, (50, 37, 5)).astype(dtype)
    values[:4] = np.nan if dtype == "float32" else 0
    np.save(tmp_path / "a.npy", values)
    found = runpy.run_path(str(tmp_path / "example.py"))["preprocess"](tmp_path / "a.npy")
    image = open_image(str(tmp_path / "a.npy"), pixel_format=pixel_format)
    pixels = content.view(image, np.random.default_rng(0))["image"]
    np.testing.assert_allclose(found[0], pixels.transpose(2, 0, 1) / np.float32(127.5) - 1, atol=difference + 1e-6)
