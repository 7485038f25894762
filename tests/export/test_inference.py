"""Export to Paddle Inference: the outputs are checked by the command itself, and the example runs on a picture."""

from __future__ import annotations

import dataclasses
import re
import runpy
import subprocess
import sys

import cv2
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
        pytest.param("mae", "encoder", marks=pytest.mark.once),
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


@pytest.mark.once
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


def test_the_example_runs_on_several_images(export, fork_server, tmp_path):
    """It checks the arguments before the import of Paddle, which takes seconds."""
    out, _ = export("mae_classifier", "inference", "--no_verify")
    pictures = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in pictures:
        Image.new("RGB", (30, 30)).save(path)

    def run_without_packages(*words):
        command = [sys.executable, "-S", str(out / "example.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    done = fork_server.run([str(out / "example.py"), *pictures], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in pictures] == pictures
    assert sum(" %  " in line for line in lines) == 2 * 5
    usage = "usage: python example.py IMAGE [IMAGE ...]\n"
    assert run_without_packages("--help") == (0, usage, "")
    assert run_without_packages() == (1, "", usage)
    assert run_without_packages(pictures[0], "none.png") == (1, "", "cannot read none.png: there is no such file\n")


def example_of(file_of, folder, pixel_format):
    """Return the functions of the example of an encoder for such images."""
    config = ExportConfig(
        target="inference", model_path=str(file_of("mae")), save_path="unused", num_heads=3, decoder_num_heads=2
    )
    numbers = (0.5,) * pixel_format.channels
    content = dataclasses.replace(
        open_content(config, ("encoder",)), pixel_format=pixel_format, mean=numbers, std=numbers
    )
    (folder / "example.py").write_text(example_text(load_target("inference"), content))
    return content, runpy.run_path(str(folder / "example.py"))


@pytest.mark.parametrize(
    ("dtype", "pixel_format", "difference"),
    [
        ("uint16", PixelFormat(2, (4, 2), PixelRange(100, 4095)), 1e-5),
        ("float32", PixelFormat(5, (), PixelRange(-1, 4096)), 1e-5),
        ("uint8", PixelFormat(5), 0),
    ],
)
def test_the_example_prepares_arrays_as_the_suite_does(file_of, tmp_path, dtype, pixel_format, difference):
    content, example = example_of(file_of, tmp_path, pixel_format)
    values = np.random.default_rng(0).integers(0, 4096, (50, 37, 5)).astype(dtype)
    values[:4] = np.nan if dtype == "float32" else 0
    np.save(tmp_path / "a.npy", values)
    found = example["preprocess"](tmp_path / "a.npy")
    image = open_image(str(tmp_path / "a.npy"), pixel_format=pixel_format)
    pixels = content.view(image, np.random.default_rng(0))["image"]
    np.testing.assert_allclose(found[0], pixels.transpose(2, 0, 1) / np.float32(127.5) - 1, atol=difference + 1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "pixel_format"),
    [
        ((50, 37), "uint8", PixelFormat(1)),
        ((50, 37, 3), "uint8", PixelFormat(1)),  # color becomes luminance
        ((50, 37), "uint16", PixelFormat(1)),
        ((50, 37), "uint16", PixelFormat(1, (), PixelRange(0, 4095))),
        ((50, 37), "uint8", PixelFormat(1, (), PixelRange(0, 4095))),  # the range is for deeper files
        ((50, 37, 3), "uint8", PixelFormat(3, (3, 2, 1))),
        ((50, 37, 4), "uint8", PixelFormat(4)),
        ((50, 37), "uint16", PixelFormat()),
        ((50, 37), "uint16", PixelFormat(3, (), PixelRange(0, 4095))),
        ((50, 37, 4), "uint8", PixelFormat()),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_the_example_reads_files_as_the_suite_does(file_of, tmp_path, shape, dtype, pixel_format, suffix):
    if suffix == "npy" and shape[2:] == (3,) and pixel_format.channels == 1:
        pytest.skip("arrays have no luminance")
    content, example = example_of(file_of, tmp_path, pixel_format)
    values = np.random.default_rng(0).integers(0, 256 if dtype == "uint8" else 4096, shape).astype(dtype)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    pixels = content.view(open_image(str(path), pixel_format=pixel_format), np.random.default_rng(0))["image"]
    found = example["preprocess"](path)[0]
    np.testing.assert_allclose(found, pixels.transpose(2, 0, 1) / np.float32(127.5) - 1, atol=1e-5)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_example_reads_tiff_files_that_pillow_refuses(file_of, tmp_path, monkeypatch, planar):
    """By tifffile; without that package it names the line that converts them, and the line is right."""
    tifffile = pytest.importorskip("tifffile")
    content, example = example_of(file_of, tmp_path, PixelFormat(4, (), PixelRange(0, 4095)))
    values = np.random.default_rng(0).integers(0, 4096, (50, 37, 4)).astype(np.uint16)
    path, stored = tmp_path / "a.tif", values if planar == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar)
    pixels = content.view(open_image(str(path), pixel_format=content.pixel_format), np.random.default_rng(0))["image"]
    found = example["preprocess"](path)
    np.testing.assert_allclose(found[0], pixels.transpose(2, 0, 1) / np.float32(127.5) - 1, atol=1e-5)

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "tifffile", None)
        with pytest.raises(SystemExit, match="install tifffile") as refusal:
            example["preprocess"](path)
        with pytest.raises(SystemExit, match="No such file"):
            example["preprocess"](tmp_path / "missing.tif")
    exec(re.search('python -c "(.+?)"', str(refusal.value))[1])
    np.testing.assert_array_equal(example["preprocess"](f"{path}.npy"), found)


@pytest.mark.parametrize(
    ("name", "pixel_format", "mentioned"),
    [
        ("a.txt", PixelFormat(1), "1 band,"),
        ("missing.png", PixelFormat(), "1, 3 or 4 bands"),
        ("objects.npy", PixelFormat(2), "2 bands"),
        ("color.png", PixelFormat(13), "13 bands"),
        ("color.png", PixelFormat(2, (9, 1)), "9 or more bands"),
        ("float.npy", PixelFormat(1), "float32"),
        ("deep.png", PixelFormat(3, (3, 2, 1), PixelRange(0, 4095)), "16 bits"),
    ],
)
def test_the_example_refuses_other_files_in_a_sentence(file_of, tmp_path, name, pixel_format, mentioned):
    (tmp_path / "a.txt").write_text("text")
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "float.npy", np.zeros((8, 8), np.float32))
    Image.new("RGB", (8, 8)).save(tmp_path / "color.png")
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    _, example = example_of(file_of, tmp_path, pixel_format)
    with pytest.raises(SystemExit) as refusal:
        example["preprocess"](tmp_path / name)
    assert all(part in str(refusal.value) for part in (name, mentioned, ".npy", "expected"))
    assert "\n" not in str(refusal.value)
