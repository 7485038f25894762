"""Features of a data set: tokens, order, batches, processes and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.analysis import feature_store
from plsc_mae.analysis import features as module
from plsc_mae.analysis.feature_store import FeatureStore
from plsc_mae.analysis.features import (
    RowsInMemory,
    TokenFeatures,
    encode_images,
    pixel_features,
    require_finite_features,
    select_tokens,
)
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import CheckpointError, ConfigError, DataError
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.parallel.world import World

pytestmark = pytest.mark.compat
VIEW = ResizeCenterCrop((16, 16), 16)


@pytest.fixture
def encoder() -> VisionTransformer:
    paddle.seed(0)
    network = VisionTransformer(16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    network.eval()
    return network


@pytest.fixture
def images(tmp_path):
    """Create 11 images in 2 classes; the first pixel of image i is i in all channels."""
    for i in range(11):
        folder = tmp_path / "images" / ("cat" if i < 6 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(folder / f"{i:02d}.png")
    return find_images(tmp_path / "images", "val")


def test_tokens_are_those_of_the_encoder(encoder):
    pixels = paddle.to_tensor(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    normalize = Normalize()
    tokens = encoder.forward_features(normalize(pixels)).numpy()
    features = TokenFeatures(encoder, normalize, [2, 0], ["cls", "mean", "patch"], norm=True)(pixels)
    assert list(features) == [f"layer{i}/{kind}" for i in (2, 0) for kind in ("cls", "mean", "patch")]
    np.testing.assert_array_equal(features["layer2/cls"].numpy(), tokens[:, 0])
    np.testing.assert_array_equal(features["layer2/patch"].numpy(), tokens[:, 1:])
    np.testing.assert_allclose(features["layer2/mean"].numpy(), tokens[:, 1:].mean(axis=1), rtol=1e-5, atol=1e-6)
    bare = TokenFeatures(encoder, normalize, [2], ["patch"], norm=False)(pixels)["layer2/patch"]
    np.testing.assert_array_equal(encoder.norm(bare).numpy(), tokens[:, 1:])
    assert np.abs(bare.numpy() - tokens[:, 1:]).max() > 0.01


def test_layers_build_on_each_other(encoder):
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32))
    states = encoder.forward_layers(images)
    assert len(states) == 3
    for block, before, after in zip(encoder.blocks, states, states[1:], strict=False):
        np.testing.assert_array_equal(block(before).numpy(), after.numpy())


def test_mean_pooling_leaves_the_class_token_out():
    tokens = paddle.to_tensor(np.array([[[100.0], [1.0], [3.0]]], np.float32))
    assert select_tokens(tokens, "mean").item() == 2.0
    assert select_tokens(tokens, "cls").item() == 100.0


def test_without_a_class_token_the_mean_takes_all():
    encoder = VisionTransformer(16, patch_size=8, embed_dim=16, depth=1, num_heads=2, class_token=False)
    encoder.eval()
    pixels = paddle.to_tensor(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    features = TokenFeatures(encoder, Normalize(), [1], ["mean", "patch"], norm=True)(pixels)
    tokens = encoder.forward_features(Normalize()(pixels)).numpy()
    np.testing.assert_array_equal(features["layer1/patch"].numpy(), tokens)
    np.testing.assert_allclose(features["layer1/mean"].numpy(), tokens.mean(axis=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="the network has no class token; take the mean of its patches"):
        TokenFeatures(encoder, Normalize(), [1], ["cls"], norm=True)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (4, 2), (64, 0)])
def test_every_image_once_in_the_order_of_the_list(images, batch_size, workers):
    world = World("cpu")
    arrays = encode_images(pixel_features, images, VIEW, world, batch_size=batch_size, num_workers=workers).arrays
    assert arrays["pixels"].shape == (11, 16 * 16 * 3)
    np.testing.assert_array_equal((arrays["pixels"] * 255).round(), np.arange(11)[:, None].repeat(768, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out(images, messages, workers):
    """The first, one in the middle and the last; no other image gets their places."""
    for place in (0, 4, 10):
        Path(images.path(place)).write_bytes(b"no image")
    encoded = encode_images(pixel_features, images, VIEW, World("cpu"), batch_size=4, num_workers=workers)
    kept = [1, 2, 3, 5, 6, 7, 8, 9]
    assert (encoded.arrays["pixels"][:, 0] * 255).round().astype(int).tolist() == kept
    assert encoded.kept.tolist() == kept
    assert encoded.unreadable == [0, 4, 10]
    assert len(messages) == 3
    assert all(images.path(place) in text for place, text in zip((0, 4, 10), messages, strict=True))


def test_bad_images_can_be_errors_and_all_bad_ones_are(images):
    Path(images.path(3)).write_bytes(b"")
    options = {"batch_size": 4, "num_workers": 0}
    with pytest.raises(DataError, match=rf"{images.path(3)}: the file is empty.*--bad_image skip"):
        encode_images(pixel_features, images, VIEW, World("cpu"), bad_image="error", **options)
    for place in range(len(images)):
        Path(images.path(place)).write_bytes(b"")
    with pytest.raises(DataError, match=rf"none of 11 images .*{images.path(0)}"):
        encode_images(pixel_features, images, VIEW, World("cpu"), **options)


class Ranks:
    """Simulation of a run's processes in sequence; `sum` keeps its result for the next process."""

    def __init__(self, size: int) -> None:
        self.size, self.rank, self.parts, self.turn = size, 0, {}, 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: paddle.Tensor) -> paddle.Tensor:
        self.parts[self.turn] = self.parts.get(self.turn, 0) + values
        self.turn += 1
        return self.parts[self.turn - 1]


@pytest.mark.parametrize(("size", "batch_size"), [(2, 4), (3, 2), (3, 5), (16, 1)])
def test_processes_share_the_images(images, size, batch_size):
    """The parts of all processes are summed; the first process runs last, so that it has the whole sum."""
    world = Ranks(size)
    for world.rank in reversed(range(size)):
        world.turn = 0
        encoded = encode_images(pixel_features, images, VIEW, world, batch_size=batch_size, num_workers=0)
        assert bool(encoded.arrays) == world.is_main
    arrays = encoded.arrays
    np.testing.assert_array_equal((arrays["pixels"][:, 0] * 255).round(), np.arange(11))


class Stopped(Exception):
    pass


def test_an_interrupted_encoding_is_continued_with_the_same_bits(images, encoder, tmp_path, monkeypatch):
    """The images before the interruption are not encoded again, except the first one, which determines the shapes."""
    monkeypatch.setattr(feature_store, "COMMIT_SECONDS", 0)
    Path(images.path(1)).write_bytes(b"no image")
    features = TokenFeatures(encoder, Normalize(), [2], ["cls", "mean"], norm=True)
    options = {"batch_size": 3, "num_workers": 0}
    plain = encode_images(features, images, VIEW, World("cpu"), **options)
    seen = []

    def stop() -> None:
        seen.append(len(seen))
        if len(seen) == 2:
            raise Stopped

    store = FeatureStore(tmp_path / "x", {})
    with pytest.raises(Stopped):
        encode_images(features, images, VIEW, World("cpu"), rows=store, on_batch=stop, **options)
    store = FeatureStore(tmp_path / "x", {})
    assert store.images == 6
    again = encode_images(features, images, VIEW, World("cpu"), rows=store, on_batch=stop, **options)
    assert len(seen) == 4  # two batches before, two after
    assert (again.kept.tolist(), again.unreadable) == (plain.kept.tolist(), [1])
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_half_precision_halves_the_memory(images):
    options = {"batch_size": 4, "num_workers": 0}
    single, half = (
        encode_images(pixel_features, images, VIEW, World("cpu"), rows=RowsInMemory(dtype), **options).arrays["pixels"]
        for dtype in ("float32", "float16")
    )
    assert half.nbytes * 2 == single.nbytes
    np.testing.assert_array_equal(half, single.astype(np.float16))


def test_results_that_are_not_finite_are_found_in_any_part(monkeypatch):
    monkeypatch.setattr(module, "CHECKED_BYTES", 16)
    array = np.zeros((9, 2, 2), np.float16)
    require_finite_features({"x": array}, "net.pd")
    array[[4, 8], 1] = np.inf, np.nan
    with pytest.raises(CheckpointError, match=r"net\.pd gives x .* 2 of 9 images \(the first is number 4\)"):
        require_finite_features({"x": array}, "net.pd")
