"""The discrete VAE against openai/DALL-E: logits, tokens, drawings, for every way it computes.

Outputs are compared to 1e-4 relative, or 1e-5 of the largest for small values next to zero: float32 sums of up to 18432
terms in another order differ by 1e-6 of the largest (8e-6 of 7.3 measured at full size). Tokens must be equal where the
two best logits are further apart than ten times that.
"""

from __future__ import annotations

import zlib

import numpy as np
import paddle
import pytest

from plsc_mae.data.demo import CLASSES, draw_demo_image
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.models.dalle import Conv2D, DalleDecoder, DalleEncoder, map_pixels, random_init, unmap_pixels

compat = pytest.mark.compat

CLEAR_MARGIN = 1e-4
FIRST = [267, 267, 267, 267, 352, 352, 267, 267, 352, 267, 267, 352, 352, 352, 352, 352]
SECOND = [146, 352, 267, 352, 352, 267, 267, 352, 352, 352, 267, 352, 352, 352, 352, 352]
FIRST_DRAWS = [0.0922577, -0.1143304, -0.0351053]


def close(found: paddle.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))


def to_uint8(images: np.ndarray) -> np.ndarray:
    return (images.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def one_hot(tokens: np.ndarray, vocab_size: int) -> paddle.Tensor:
    return paddle.to_tensor(np.eye(vocab_size, dtype=np.float32)[tokens].transpose(0, 3, 1, 2))


@pytest.fixture
def tiny(golden):
    case = golden("cae/dalle_tiny")
    sizes = {part: case.meta["constructor"][part] for part in ("encoder", "decoder")}
    encoder_sizes = {name: sizes["encoder"][name] for name in ("n_hid", "vocab_size")}
    decoder_sizes = {name: sizes["decoder"][name] for name in ("n_init", "n_hid", "vocab_size")}
    params = case.group("param")
    encoder, decoder = (
        {name.removeprefix(f"{part}."): value for name, value in params.items() if name.startswith(f"{part}.")}
        for part in ("encoder", "decoder")
    )
    return case, DalleEncoder.from_arrays(encoder, encoder_sizes), DalleDecoder.from_arrays(decoder, decoder_sizes)


@compat
def test_pixels_are_mapped_as_in_the_original(golden):
    case = golden("cae/dalle_tiny")
    pixels = paddle.to_tensor(case["input/pixels"])
    np.testing.assert_allclose(map_pixels(pixels).numpy(), case["output/map_pixels"], atol=1e-7)
    np.testing.assert_allclose(unmap_pixels(pixels).numpy(), case["output/unmap_pixels"], atol=1e-6)


@compat
def test_tiny_logits_and_tokens(tiny):
    case, encoder, _ = tiny
    logits = encoder(map_pixels(paddle.to_tensor(case["input/image"])))
    close(logits, case["output/encoder_logits"])
    clear = case["output/top2_margin"] > CLEAR_MARGIN
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(logits.argmax(axis=1).numpy()[clear], case["output/codebook_indices"][clear])


@compat
def test_tiny_drawings(tiny):
    case, _, decoder = tiny
    tokens = case["input/given_indices"]
    close(decoder(one_hot(tokens, 32)), case["output/decoder_stats_from_given"])
    close(decoder(paddle.to_tensor(case["output/encoder_probs"])), case["output/decoder_stats_from_probs"])
    close(decoder.decode(paddle.to_tensor(tokens)), case["output/reconstruction_from_given"])


@compat
def test_tokenize_takes_bytes_and_goes_row_by_row(tiny):
    case, encoder, _ = tiny
    images = to_uint8(np.concatenate([case["input/image"]] * 2)[:3, :, :16])  # 3 images of 16 x 32: a 2 x 4 grid
    pixels = paddle.to_tensor(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    tokens = encoder.tokenize(paddle.to_tensor(images))
    assert tokens.dtype == paddle.int64
    assert tokens.shape == [3, 8]
    np.testing.assert_array_equal(tokens.numpy(), encoder(map_pixels(pixels)).argmax(axis=1).numpy().reshape(3, 8))


@compat
def test_everything_is_frozen(tiny):
    case, encoder, decoder = tiny
    assert len(encoder.parameters()) == 74
    assert len(decoder.parameters()) == 76
    assert all(p.stop_gradient for network in (encoder, decoder) for p in network.parameters())
    assert encoder(map_pixels(paddle.to_tensor(case["input/image"]))).stop_gradient


@compat
def test_a_narrowing_convolution_is_the_same_in_either_form():
    """On CPU the form is chosen by the image size; an image above and one below that size agree on their middle."""
    encoder = DalleEncoder(n_hid=16, vocab_size=8)
    random_init(encoder, 0)
    conv = encoder.blocks["group_4"]["block_2"].res_path["conv_1"]  # 128 -> 32 channels
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 128, 9, 9), np.float32))
    large, small = conv(x), conv(x[:, :, 2:7, 2:7])  # 81 and 25 pixels, 32 is where it changes
    np.testing.assert_allclose(large[:, :, 3:6, 3:6].numpy(), small[:, :, 1:4, 1:4].numpy(), atol=1e-5)


def by_crc(part: str, network) -> dict[str, np.ndarray]:
    """Weights drawn by name: the recipe of the numbers recorded below."""
    values = {}
    for name, parameter in network.state_dict().items():
        value = np.random.RandomState(zlib.crc32(f"{part}.{name}".encode())).standard_normal(parameter.shape)
        values[name] = value / np.sqrt(value[0].size) if name.endswith(".w") else 0.1 * value
    return values


@compat
def test_recorded_numbers_of_the_original():
    sizes = {"n_hid": 64, "vocab_size": 512}
    encoder = DalleEncoder.from_arrays(by_crc("enc", DalleEncoder(**sizes)), sizes)
    images = np.random.RandomState(0).uniform(size=[2, 3, 32, 32]).astype(np.float32)
    logits = encoder(map_pixels(paddle.to_tensor(images)))
    assert logits.shape == [2, 512, 4, 4]
    np.testing.assert_allclose(
        logits[0, :4, 0, 0].numpy(), [-0.135728, 0.4424024, 0.443208, -0.3776826], rtol=1e-4, atol=2e-6
    )
    assert np.abs(logits.numpy()).sum(dtype=np.float64) == pytest.approx(5936.0239, rel=1e-5)
    tokens = logits.argmax(axis=1)  # the two best logits are at least 0.0147 apart
    assert tokens.flatten(1).tolist() == [FIRST, SECOND]

    decoder_sizes = {"n_init": 16, **sizes}
    decoder = DalleDecoder.from_arrays(by_crc("dec", DalleDecoder(**decoder_sizes)), decoder_sizes)
    stats = decoder(one_hot(tokens.numpy(), 512))
    np.testing.assert_allclose(
        stats[0, :, 0, 0].numpy(),
        [-0.0853206, 0.3064628, 0.0093654, -0.0279107, -0.3336452, -0.0295302],
        rtol=1e-4,
        atol=2e-6,
    )
    assert np.abs(stats.numpy()).sum(dtype=np.float64) == pytest.approx(1710.1578, rel=1e-5)
    drawn = unmap_pixels(paddle.nn.functional.sigmoid(stats[:, :3]))
    np.testing.assert_allclose(decoder.decode(tokens).numpy(), drawn.numpy(), atol=1e-6)


def full_size(case, part: str, network) -> dict[str, np.ndarray]:
    """Weights too large to store, by the recipe in the golden data's notes."""
    values = {}
    for name, parameter in network.state_dict().items():
        rng = np.random.default_rng(zlib.crc32(f"{case.meta[f'name_prefix_{part}']}{name}".encode()))
        z = rng.standard_normal(parameter.shape, dtype=np.float32)
        if name.endswith(".w"):
            z = (z - z.mean(axis=(1, 2, 3), keepdims=True)) * np.float32(1.6 / np.sqrt(z[0].size))
        else:
            z *= np.float32(0.02)
        values[name] = z
    norms = dict(zip(case.meta[f"{part}_names"], case[f"output/{part}_param_norm"], strict=True))
    for name, value in values.items():
        assert np.linalg.norm(value.astype(np.float64)) == pytest.approx(norms[name], rel=1e-5)
    return values


@pytest.mark.slow
def test_full_size_encoder(golden):
    case = golden("cae/dalle_full")
    encoder = DalleEncoder.from_arrays(full_size(case, "encoder", DalleEncoder()), {})
    assert sum(p.size for p in encoder.parameters()) == 53_786_240
    images = paddle.to_tensor(case["input/image_uint8_hwc"])
    expected, clear = case["output/codebook_indices"], case["output/top2_margin"] > CLEAR_MARGIN
    tokens = encoder.tokenize(images).numpy().reshape(expected.shape)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(tokens[clear], expected[clear])
    assert len(np.unique(expected)) > 50
    logits = encoder(map_pixels(images.transpose([0, 3, 1, 2]).astype("float32") / 255))
    rows, columns = case["output/logits_slice"].shape[2:]
    close(logits[:, :32, :rows, :columns], case["output/logits_slice"])
    close(logits[:, -32:, -3:, -3:], case["output/logits_tail_slice"])
    norms = np.linalg.norm(logits.numpy().astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, case["output/logits_position_norm"], rtol=1e-5)
    sums = paddle.logsumexp(logits, axis=1).numpy()
    np.testing.assert_allclose(sums, case["output/logits_position_logsumexp"], rtol=1e-5)
    assert logits.numpy().std(dtype=np.float64) == pytest.approx(float(case["output/logits_std"]), rel=1e-4)


def test_parameters_of_the_full_decoder():
    with paddle.LazyGuard():
        decoder = DalleDecoder()
    assert sum(p.size for p in decoder.parameters()) == 43_829_766


@pytest.mark.slow
def test_full_size_decoder(golden):
    case = golden("cae/dalle_full")
    decoder = DalleDecoder.from_arrays(full_size(case, "decoder", DalleDecoder()), {})
    assert sum(p.size for p in decoder.parameters()) == 43_829_766
    tokens = case["input/given_indices"]
    stats = decoder(one_hot(tokens, 8192))
    close(stats[:, :, :16, :16], case["output/decoder_stats_slice"])
    norms = np.linalg.norm(stats.numpy().astype(np.float64), axis=(2, 3))
    np.testing.assert_allclose(norms, case["output/decoder_stats_channel_norm"], rtol=1e-5)
    pixels = decoder.decode(paddle.to_tensor(tokens))
    close(pixels[:, :, 48:64, 48:64], case["output/reconstruction_slice"])
    np.testing.assert_allclose(pixels.mean(axis=[2, 3]).numpy(), case["output/reconstruction_mean"], rtol=1e-5)


# Random weights


@compat
def test_random_weights_depend_on_the_seed_only():
    def weights(seed: int, paddle_seed: int) -> dict[str, np.ndarray]:
        paddle.seed(paddle_seed)
        encoder = DalleEncoder(n_hid=8, vocab_size=16)
        random_init(encoder, seed)
        return {name: value.numpy() for name, value in encoder.state_dict().items()}

    first, again, other = weights(0, 0), weights(0, 1), weights(1, 0)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert name.endswith(".b") or not np.allclose(value, other[name])
    kernel = first["blocks.input.w"]  # [8, 3, 7, 7]
    np.testing.assert_allclose(kernel.mean(axis=(1, 2, 3)), 0, atol=1e-7)
    assert kernel.std() == pytest.approx(147**-0.5, rel=0.1)
    # Other versions of NumPy and Paddle must draw the same tokenizer: runs with it would not be comparable.
    np.testing.assert_allclose(kernel[0, 0, 0, :3], FIRST_DRAWS, atol=1e-7)


@pytest.mark.once
@compat
def test_random_tokens_of_demo_images_are_varied():
    """With plain normal kernels the most frequent token had 20 to 85 % of all places."""
    images = np.stack([np.asarray(draw_demo_image("train", name, i)) for name in CLASSES for i in range(3)])
    encoder = DalleEncoder(n_hid=32, vocab_size=512)
    random_init(encoder, 0)
    counts = np.bincount(encoder.tokenize(paddle.to_tensor(images)).numpy().ravel(), minlength=512)
    assert counts.max() < 0.15 * counts.sum()
    assert (counts > 0).sum() > 100


# Mistakes


@compat
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("blocks.output.conv.b"), "'blocks.output.conv.b' has shape none, but"),
        (lambda t: t.update({"blocks.extra": np.zeros(3)}), "'blocks.extra' has shape [3], but"),
        (lambda t: t.update({"blocks.input.b": np.zeros(3)}), "'blocks.input.b' has shape [3], but"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, told):
    sizes = {"n_hid": 8, "vocab_size": 16}
    tensors = {name: value.numpy() for name, value in DalleEncoder(**sizes).state_dict().items()}
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        DalleEncoder.from_arrays(tensors, sizes, origin="weights/encoder.pkl")
    assert str(caught.value).startswith(f"weights/encoder.pkl: {told} a DalleEncoder of")


@compat
def test_float16_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "cpu")
    with pytest.raises(ConfigError, match="on GPU only"):
        DalleEncoder(n_hid=8, vocab_size=16, compute_dtype="float16")


@compat
def test_two_precisions_work_together():
    """Float64 stands in for the float16 of a GPU, which no CPU kernel computes in."""
    encoder, decoder = DalleEncoder(n_hid=8, vocab_size=16), DalleDecoder(n_init=64, n_hid=8, vocab_size=16)
    image = paddle.to_tensor(np.random.default_rng(0).random((1, 3, 16, 16), np.float32))
    probs = paddle.nn.functional.softmax(image[:, :1, :4, :4].tile([1, 16, 1, 1]) * paddle.arange(16.0)[:, None, None])
    for network, x, in_float32 in ((encoder, image, "blocks.output.conv"), (decoder, probs, "blocks.input")):
        random_init(network, 0)
        expected = network(x).numpy()
        for name, layer in network.named_sublayers():
            if isinstance(layer, Conv2D) and name != in_float32:
                layer.dtype = "float64"
                layer.to(dtype="float64")
        found = network(x)
        assert found.dtype == paddle.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@compat
def test_float16_is_used_where_the_original_uses_it(monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    encoder, decoder = DalleEncoder(n_hid=8, vocab_size=16), DalleDecoder(n_init=8, n_hid=8, vocab_size=16)
    for network, in_float32 in ((encoder, "blocks.output.conv"), (decoder, "blocks.input")):
        layers = {name: layer for name, layer in network.named_sublayers() if isinstance(layer, Conv2D)}
        assert all(layer.w.dtype == layer.b.dtype == getattr(paddle, layer.dtype) for layer in layers.values())
        dtypes = {name: layer.dtype for name, layer in layers.items()}
        assert dtypes.pop(in_float32) == "float32"
        assert set(dtypes.values()) == {"float16"}
