"""What CAE predicts: tokens, pixels, nearest vectors; and what is told where a target cannot be made."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.data.normalize import Normalize
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.losses import normalize_pixels
from plsc_mae.methods.targets import PixelTarget, TokenTarget, VectorTarget, build_target, load_decoder
from plsc_mae.models.dalle import DalleEncoder, random_init
from plsc_mae.weights.dalle import infer_sizes, read_dalle

pytestmark = pytest.mark.compat

PIXELS = 8 * 8 * 3


@pytest.fixture
def target(config):
    """Make the target of a tiny config."""
    return lambda **options: build_target(config(**options), Normalize(), 8)


@pytest.fixture
def vectors() -> np.ndarray:
    """Random vectors of 5 classes."""
    return np.random.default_rng(7).standard_normal((PIXELS, 5), np.float32)


def patches(images: paddle.Tensor) -> np.ndarray:
    """Cut uint8 [B, 32, 32, 3] into [B, 16, 8*8*3], row, column, channel."""
    cut = images.numpy().reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(2, 16, PIXELS).astype(np.float64)


def test_tokens_are_the_dvaes(target, tokenizer, batch):
    folder, encoder = tokenizer()
    made = target(discrete_vae_weight_path=folder)
    assert isinstance(made, TokenTarget)
    assert made.num_classes == 32
    tokens = made(batch)
    assert tokens.dtype == paddle.int64
    np.testing.assert_array_equal(tokens.numpy(), encoder.tokenize(batch["tokenizer_image"]).numpy())
    assert len(np.unique(tokens.numpy())) > 3


def test_a_file_names_the_tokenizer_too(target, tokenizer, batch):
    folder, encoder = tokenizer()
    made = target(discrete_vae_weight_path=f"{folder}/encoder_weight.pd")
    np.testing.assert_array_equal(made(batch).numpy(), encoder.tokenize(batch["tokenizer_image"]).numpy())


def test_the_random_tokenizer_follows_its_options(target, batch):
    made = target(discrete_vae_seed=3, discrete_vae_type="random_init", discrete_vae_hidden=4, decoder_num_classes=9)
    expected = DalleEncoder(4, 9)
    random_init(expected, 3)
    np.testing.assert_array_equal(made(batch).numpy(), expected.tokenize(batch["tokenizer_image"]).numpy())
    assert made.num_classes == 9


def test_targets_are_no_weights_of_the_model(task):
    built = task()
    assert all(param.stop_gradient for param in built.target.parameters())
    assert not any("tokenizer" in name or "target" in name for name in built.model.state_dict())
    trained = [name for group in built.param_groups(0.05) for name in group.names]
    assert set(trained) == {name for name, _ in built.model.named_parameters()}


@pytest.mark.parametrize("kind", ["layernorm", "none", "patch", "channel"])
@pytest.mark.parametrize("denorm", [False, True])
def test_pixels(target, batch, kind, denorm):
    made = target(target_mode="rgb", normalized_pixel=kind, denorm=denorm)
    assert isinstance(made, PixelTarget)
    assert made.num_classes == PIXELS
    pixels = patches(batch["image"]) / 255
    if not denorm:
        mean, std = [0.485, 0.456, 0.406] * 64, [0.229, 0.224, 0.225] * 64
        pixels = (pixels - mean) / std
    expected = normalize_pixels(paddle.to_tensor(pixels.astype(np.float32)), kind).numpy()
    np.testing.assert_allclose(made(batch).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_pixel_loss(target):
    pred, wanted = (paddle.to_tensor(np.random.default_rng(i).random((6, PIXELS), np.float32)) for i in (0, 1))
    loss, logs = target(target_mode="rgb").loss(pred, wanted)
    assert float(loss) == pytest.approx(np.mean((pred.numpy() - wanted.numpy()) ** 2), rel=1e-5)
    assert not logs


@pytest.mark.parametrize("form", ["npz", "paddle", "paddle, a bare tensor"])
def test_nearest_vectors_from_a_file(target, batch, vectors, tmp_path, form):
    file = tmp_path / "vectors"
    if form == "npz":
        with file.open("wb") as stream:
            np.savez(stream, vectors=vectors)
    else:
        tensor = paddle.to_tensor(vectors)
        paddle.save({"vectors": tensor} if form == "paddle" else tensor, str(file))
    made = target(target_mode="random", target_path=str(file))
    assert isinstance(made, VectorTarget)
    assert made.num_classes == 5
    pixels = made.pixels(batch).numpy()
    expected = (pixels.astype(np.float64) @ vectors).argmax(axis=-1)
    np.testing.assert_array_equal(made(batch).numpy(), expected)
    assert made(batch).dtype == paddle.int64


def test_vectors_are_drawn_from_the_seed(target, batch):
    classes = {"target_mode": "random", "decoder_num_classes": 64}
    one, same, other = (target(**classes, discrete_vae_seed=seed)(batch).numpy() for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).mean() > 0.5
    assert target(target_mode="random").num_classes == 8192


def test_class_loss(target):
    rng = np.random.default_rng(0)
    logits, classes = rng.standard_normal((10, 32)).astype(np.float32), np.array([3] * 4 + [7, 8, 9, 10, 11, 3])
    logits[[0, 1, 2, 8], classes[[0, 1, 2, 8]]] = 9.0
    loss, logs = target().loss(paddle.to_tensor(logits), paddle.to_tensor(classes))
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert float(loss) == pytest.approx(-np.log(likelihood[np.arange(10), classes]).mean(), rel=1e-5)
    assert float(logs["mlm_acc"]) == pytest.approx((logits.argmax(axis=-1) == classes).mean())
    assert float(logs["top_token_share"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"discrete_vae_type": "dall-e"}, r"^--discrete_vae_weight_path is required: the folder with DALL-E's encoder"),
        ({"target_mode": "rgb", "decoder_num_classes": 768}, r"768: the target \(rgb\) has 192 classes; leave the"),
    ],
)
def test_options_that_cannot_be_obeyed(target, options, told):
    with pytest.raises(ConfigError, match=told):
        target(**options)


def test_another_number_of_classes_than_the_dvaes(target, tokenizer):
    folder, _ = tokenizer(vocab_size=24)
    assert target(discrete_vae_weight_path=folder, decoder_num_classes=24).num_classes == 24
    with pytest.raises(ConfigError, match=r"--decoder_num_classes 8192: the target \(clusterID\) has 24"):
        target(discrete_vae_weight_path=folder, decoder_num_classes=8192)


def test_no_tokenizer_where_one_is_named(target, tmp_path):
    with pytest.raises(CheckpointError, match=f"no encoder in {tmp_path}; expected encoder_weight.pd or encoder.pkl"):
        target(discrete_vae_weight_path=str(tmp_path))


def test_vectors_of_another_length_are_refused(target, vectors, tmp_path):
    np.savez(tmp_path / "short.npz", vectors=vectors[:100])
    np.savez(tmp_path / "two.npz", a=vectors, b=vectors)
    for name, told in (("short", r"1 array \(\[100, 5\]\)"), ("two", r"2 arrays \(\[192, 5\], \[192, 5\]\)")):
        with pytest.raises(CheckpointError, match=rf"{name}.npz holds {told}; .* \[192, classes\]"):
            target(target_mode="random", target_path=str(tmp_path / f"{name}.npz"))


def test_the_decoder_is_loaded_where_there_is_one(config, tokenizer):
    folder, _ = tokenizer()
    vocabulary = infer_sizes(read_dalle(folder, "encoder"))["vocab_size"]
    assert load_decoder(config(discrete_vae_weight_path=folder), vocabulary) is None
    assert load_decoder(config(discrete_vae_weight_path=f"{folder}/encoder_weight.pd"), vocabulary) is None
    assert load_decoder(config(), vocabulary) is None
    tokenizer(decoder=True)
    with pytest.raises(CheckpointError, match="take both from one source"):
        load_decoder(config(discrete_vae_weight_path=folder), vocabulary + 1)
    decoder = load_decoder(config(discrete_vae_weight_path=folder), vocabulary)
    assert decoder is not None
    assert list(decoder.decode(paddle.zeros([1, 4, 4], "int64")).shape) == [1, 3, 32, 32]
