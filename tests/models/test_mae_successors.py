"""Pre-training networks of MAE-priv, MAE-pytorch and LiBai: forward, losses, gradients.

Golden tolerances as in test_mae_golden.py. The analytic cases have weights and inputs made by formula, and results of
the originals in float64; a float32 forward is within 1e-6 of them, relative to the largest of the values compared.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae import weights
from plsc_mae.errors import ConfigError
from plsc_mae.losses import channels_last
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.registry import arguments_of

PRIV = arguments_of("pretrain_mae_base_patch16_224", "mae_priv")
PYTORCH = arguments_of("pretrain_mae_base_patch16_224", "mae_pytorch")


def gradients(model, dialect: str) -> dict[str, np.ndarray]:
    values = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return weights.export(model, dialect, values=values)


def assert_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, theirs in expected.items():
        if theirs.shape == ():
            np.testing.assert_allclose(np.linalg.norm(found[name].astype(np.float64)), theirs, rtol=1e-3, err_msg=name)
        else:
            limit = 1e-4 * np.abs(theirs).max()
            np.testing.assert_allclose(found[name], theirs, rtol=1e-3, atol=limit, err_msg=name)


def priv(case, **switches) -> MaskedAutoencoder:
    ctor = case.meta["ctor"]
    sizes = {"img_size": ctor["img_size"], "patch_size": ctor["patch_size"], "in_chans": ctor["encoder_in_chans"]}
    sizes |= {"embed_dim": ctor["encoder_embed_dim"], "depth": ctor["encoder_depth"]}
    sizes |= {"num_heads": ctor["encoder_num_heads"], "decoder_num_heads": ctor["decoder_num_heads"]}
    sizes |= {name: ctor[name] for name in ("decoder_embed_dim", "decoder_depth", "mlp_ratio")}
    model = MaskedAutoencoder(**{**PRIV, **sizes, "class_token": ctor["use_cls_token"], **switches})
    report = weights.load(model, case.group("param"), dialect="mae_priv")
    assert (report.missing, report.unexpected) == ([], [])
    return model


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["norm", "raw"])
@pytest.mark.parametrize("name", ["cls", "gap"])
@pytest.mark.parametrize("shuffle", ["shared_shuffle", "per_sample"])
def test_mae_priv(golden, name, shuffle, kind):
    case = golden(f"mae/priv_pretrain_tiny_{name}")
    model = priv(case, norm_pix_loss=kind == "norm")
    images, noise = (paddle.to_tensor(case[f"input/{part}"]) for part in ("images", "noise"))
    if shuffle == "shared_shuffle":
        noise = noise[:1].expand(noise.shape)
    out = model(images, noise, case.meta["mask_ratio"])
    out.loss.backward()

    visible = case.meta["visible_size"]
    order = case[f"output/shuffle_{shuffle}"]
    np.testing.assert_array_equal(out.ids_restore.numpy(), np.argsort(order, axis=1))
    np.testing.assert_array_equal((~out.mask.numpy()).sum(1), visible)
    encoded = out.latent[:, model.encoder.num_prefix_tokens :].numpy()
    np.testing.assert_allclose(encoded, case[f"output/encoded_{shuffle}"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(out.pred.numpy(), case[f"output/decoded_{shuffle}"], rtol=1e-4, atol=2e-5)
    target = model.target(model.patchify(images)).numpy()
    np.testing.assert_allclose(target, case[f"output/target_{kind}"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(float(out.loss), case[f"output/loss_{kind}_{shuffle}"], rtol=1e-5)
    recorded = [case.group(f"{group}_{kind}_{shuffle}") for group in ("grad", "gradl2")]
    if (shuffle, kind) != ("per_sample", "raw"):  # of which no gradients are recorded
        assert_gradients(gradients(model, "mae_priv"), recorded[0] or recorded[1])
    brief = model(images, noise, case.meta["mask_ratio"], loss_only=True)
    np.testing.assert_allclose(float(brief.loss), float(out.loss), rtol=1e-6)


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_mae_pytorch(golden, kind):
    case = golden("mae/mp_pretrain_tiny")
    ctor = case.meta["ctor"]
    sizes = {"img_size": ctor["img_size"], "patch_size": 4, "embed_dim": ctor["encoder_embed_dim"]}
    sizes |= {"depth": ctor["encoder_depth"], "num_heads": ctor["encoder_num_heads"]}
    sizes |= {name: ctor[name] for name in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "mlp_ratio")}
    model = MaskedAutoencoder(**{**PYTORCH, **sizes, "norm_pix_loss": kind == "norm"})
    report = weights.load(model, case.group("param"), dialect="mae_pytorch")
    assert (report.missing, report.unexpected) == ([], [])
    images, mask = paddle.to_tensor(case["input/images"]), paddle.to_tensor(case["input/mask"])
    out = model(images, mask=mask)
    out.loss.backward()

    for part, layer in (("encoder", model.encoder), ("decoder", model.decoder)):
        np.testing.assert_allclose(layer.pos_embed.numpy(), case[f"output/pos_embed_{part}"], atol=1e-6)
    np.testing.assert_allclose(out.latent.numpy(), case["output/encoded"], rtol=1e-4, atol=2e-5)
    hidden = case["input/mask"]
    shape = case["output/pred"].shape
    np.testing.assert_allclose(out.pred.numpy()[hidden].reshape(shape), case["output/pred"], rtol=1e-4, atol=2e-5)
    target = model.target(model.patchify(images)).numpy()[hidden].reshape(shape)
    np.testing.assert_allclose(target, case[f"output/target_{kind}"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(float(out.loss), case[f"output/loss_{kind}"], rtol=1e-5)
    assert_gradients(gradients(model, "mae_pytorch"), case.group(f"grad_{kind}"))


# ------------------------------------------------------------------------------------------------ analytic cases

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}


def images() -> paddle.Tensor:
    i = np.arange(2 * 3 * 32 * 32, dtype=np.float64)
    pixels = np.sin(0.013 * i + 0.00007 * i * i)
    assert pixels.sum() == pytest.approx(54.585912640, abs=1e-8)
    return paddle.to_tensor(pixels.reshape(2, 3, 32, 32).astype(np.float32))


def noise() -> paddle.Tensor:
    m = np.arange(1, 33, dtype=np.float64)
    draws = np.abs(np.sin(12.9898 * m) * 43758.5453) % 1
    order = np.argsort(draws.reshape(2, 16), axis=1)
    assert order[0].tolist() == [12, 9, 1, 6, 10, 13, 3, 14, 4, 8, 2, 5, 7, 11, 0, 15]
    return paddle.to_tensor(draws.reshape(2, 16).astype(np.float32))


def filled(model, dialect: str, count: int):
    """Fill a network by the rank of its tensors' names in a dialect, in that dialect's layout."""
    tables = ("pos_embed", "decoder_pos_embed", "encoder.pos_embed")
    names = sorted(set(weights.export(model, dialect)) - set(tables))
    assert len(names) == count
    shapes = {name: value.shape for name, value in weights.export(model, dialect).items()}
    tensors = {}
    for rank, name in enumerate(names):
        i = np.arange(np.prod(shapes[name]), dtype=np.float64)
        value = 0.1 * np.sin(0.37 * i + 1.3 * rank)
        shift = 1 if "norm" in name and name.endswith("weight") else 0
        tensors[name] = (value + shift).reshape(shapes[name]).astype(np.float32)
    report = weights.load(model, tensors, dialect)
    assert not report.unexpected
    assert {name.rpartition(".")[2] for name in report.missing} <= {"pos_embed"}
    model.eval()
    return model


def close(found, expected) -> None:
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(np.abs(expected).max(), 1))


@pytest.mark.compat
@pytest.mark.parametrize(
    ("switches", "loss"),
    [({}, 0.5676851229), ({"norm_pix_loss": True}, 1.0637265340)],
)
def test_analytic_facebook(switches, loss):
    model = filled(MaskedAutoencoder(**SIZES, **DECODER, **switches), "facebook", 48)
    out = model(images(), noise())
    close(out.loss, loss)
    close(out.pred.numpy()[0, 0, :3], [-0.11211085, -0.19510522, -0.25251918])
    # A sum over 6144 values of which the largest is 0.3: rounding adds up to about 1e-5.
    assert out.pred.numpy().sum(dtype=np.float64) == pytest.approx(-18.41864519, abs=1e-4)
    assert out.mask.numpy()[0].astype(int).tolist() == [1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1]


def test_analytic_libai():
    """Its blocks' eps of 1e-5 changes the loss in the seventh digit, which float32 shows as a difference of the two."""
    losses = [
        float(
            filled(MaskedAutoencoder(**SIZES, **DECODER, norm_pix_loss=True, norm_eps=eps), "facebook", 48)(
                images(), noise()
            ).loss
        )
        for eps in (1e-6, 1e-5)
    ]
    close(losses[1], 1.0637267719)
    assert losses[1] - losses[0] == pytest.approx(1.0637267719 - 1.0637265340, abs=2.4e-7)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("class_token", "norm", "shared", "loss", "total"),
    [
        (False, False, True, 0.5307900647, -12.78823091),
        (False, False, False, 0.5349321333, -12.80571585),
        (False, True, True, 1.0312630064, -12.78823091),
        (False, True, False, 1.0353822847, -12.80571585),
        (True, False, True, 0.5385474887, -13.00040629),
        (True, False, False, 0.5421306934, -13.02408786),
        (True, True, True, 1.0396619871, -13.00040629),
        (True, True, False, 1.0431347041, -13.02408786),
    ],
)
def test_analytic_mae_priv(class_token, norm, shared, loss, total):
    switches = {**PRIV, **SIZES, **DECODER, "class_token": class_token, "norm_pix_loss": norm}
    model = filled(MaskedAutoencoder(**switches), "mae_priv", 51 if class_token else 50)
    draws = noise()
    out = model(images(), draws[:1].expand(draws.shape) if shared else draws)
    close(out.loss, loss)
    assert out.pred.numpy().sum(dtype=np.float64) == pytest.approx(total, abs=1e-4)  # as above


@pytest.mark.compat
@pytest.mark.parametrize(("norm", "loss"), [(True, 1.0154801546), (False, 0.2571432698)])
def test_analytic_mae_pytorch(norm, loss):
    model = filled(MaskedAutoencoder(**{**PYTORCH, **SIZES, **DECODER, "norm_pix_loss": norm}), "mae_pytorch", 49)
    mask = MaskedAutoencoder(**SIZES, **DECODER)(images(), noise()).mask
    out = model(images(), mask=mask)
    close(out.loss, loss)
    hidden = out.pred.numpy()[mask.numpy()]
    assert hidden.sum(dtype=np.float64) == pytest.approx(-5.28656319, abs=1e-4)  # as above, of the masked patches


@pytest.mark.compat
@pytest.mark.parametrize(
    ("dialect", "switches", "count", "logits"),
    [
        ("facebook", {"global_pool": True}, 31, [-0.21148039, 0.32368732, 0.66622472, 0.63701585, 0.24940409]),
        ("facebook", {"global_pool": False}, 31, [-0.01003063, 0.03716429, 0.10229402, 0.15155240, 0.15430430]),
        (
            "beit",
            {"global_pool": True, "class_token": False, "k_bias": False, "positions": "row first"},
            32,
            [-1.49228311, -1.28319050, -0.45591542, 0.58191685, 1.31904001],
        ),
        (
            "beit",
            {"global_pool": False, "fc_norm": True, "k_bias": False, "positions": "row first"},
            33,
            [0.21834994, -0.03381334, -0.25551558, -0.32329087, -0.19475393],
        ),
        (
            "beit",
            {"global_pool": True, "class_token": False, "k_bias": False, "positions": "sinusoid"},
            32,
            [-0.37775336, -0.43447057, -0.30145642, -0.03585912, 0.24089495],
        ),
    ],
)
def test_analytic_classifiers(dialect, switches, count, logits):
    model = filled(ImageClassifier(num_classes=5, **SIZES, **switches), dialect, count)
    close(model(images()).numpy()[0], logits)


# ------------------------------------------------------------------------------------------------ names, sizes, errors


@pytest.mark.parametrize(
    ("name", "dialect", "overrides", "count"),
    [
        ("pretrain_mae_small_patch16_224", "", {}, 23_586_240),
        ("pretrain_mae_base_patch16_224", "mae_pytorch", {}, 93_325_440),
        ("pretrain_mae_large_patch16_224", "", {}, 329_209_088),
        ("pretrain_mae_tiny_patch16_224", "", {"class_token": False}, 31_193_408),
        ("pretrain_mae_tiny_patch16_224", "mae_priv", {}, 31_193_600),
        ("pretrain_mae_small_patch16_224", "mae_priv", {"decoder_embed_dim": 192, "decoder_depth": 4}, 23_586_816),
        ("pretrain_mae_base_patch16_224", "mae_priv", {"decoder_embed_dim": 384, "decoder_depth": 4}, 93_326_592),
        ("pretrain_mae_large_patch16_224", "mae_priv", {"class_token": False}, 329_209_600),
        ("pretrain_mae_huge_patch14_224", "", {}, 656_568_908),
        ("pretrain_mae_giant_patch14_224", "", {"class_token": False}, 1_623_196_620),
    ],
)
def test_published_sizes(create_declared, name, dialect, overrides, count):
    model = create_declared(name, dialect=dialect, **overrides)
    assert sum(p.size for p in model.parameters() if not p.stop_gradient) == count


@pytest.mark.parametrize(
    ("name", "dialect", "overrides", "gmac"),
    [
        ("pretrain_mae_small_patch16_224", "mae_priv", {"decoder_embed_dim": 192, "decoder_depth": 4}, 1.581),
        (
            "pretrain_mae_base_patch16_224",
            "mae_priv",
            {"decoder_embed_dim": 384, "decoder_depth": 4, "class_token": False},
            5.899,
        ),
    ],
)
def test_multiply_accumulates_are_the_published_ones(create_declared, name, dialect, overrides, gmac):
    model = create_declared(name, dialect=dialect, **overrides)
    assert model.forward_macs(0.75) / 1e9 == pytest.approx(gmac, abs=1e-3)


def test_initialization_is_what_pytorch_leaves():
    """Patch embedding and bridge are uniform within 1 / sqrt(inputs), tokens cut at one standard deviation."""
    paddle.seed(0)
    sizes = {"depth": 1, "decoder_depth": 1, "decoder_embed_dim": 192}
    model = plsc_mae.create_model("pretrain_mae_small_patch16_224", dialect="mae_priv", **sizes)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, bound in (("encoder.patch_embed.proj", 768**-0.5), ("decoder.embed", 384**-0.5)):
        for part in ("weight", "bias"):
            value = state[f"{name}.{part}"]
            assert 0.9 * bound < np.abs(value).max() <= bound
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.15)
    for name in ("encoder.cls_token", "decoder.mask_token"):
        assert 0.015 < np.abs(state[name]).max() <= 0.02 + 1e-6
    assert not state["encoder.blocks.0.attn.q_bias"].any()


def test_names_that_two_code_bases_share():
    ours = {"depth": 1, "decoder_depth": 1}
    bare = plsc_mae.create_model("pretrain_mae_base_patch16_224", **ours)
    assert (bare.encoder.cls_token, bare.decoder.embed.bias, bare.pixel_norm) == (None, None, "channel")
    private = plsc_mae.create_model("pretrain_mae_base_patch16_224", dialect="mae_priv", **ours)
    assert private.encoder.cls_token is not None
    assert (private.channels_first, private.pixel_norm) == (True, "layernorm")
    with pytest.raises(ConfigError, match="unknown dialect 'facebook' of this model; known: mae_pytorch, mae_priv"):
        plsc_mae.create_model("pretrain_mae_base_patch16_224", dialect="facebook")
    with pytest.raises(ConfigError, match="known: mae_priv"):
        plsc_mae.create_model("pretrain_mae_giant_patch14_224", dialect="mae_pytorch")
    with pytest.raises(ConfigError, match="known: none"):
        plsc_mae.create_model("mae_vit_base_patch16", dialect="mae_priv")
    with pytest.raises(ConfigError, match="decoder_class_token needs a class_token"):
        MaskedAutoencoder(**SIZES, **DECODER, class_token=False)


@pytest.mark.parametrize("kind", ["patch", "layernorm", "channel"])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_predictions_are_drawn_as_targets_were_made(kind, channels_first, unit):
    switches = {"norm_pix_loss": True, "pixel_norm": kind, "channels_first": channels_first}
    if unit:
        switches |= {"pixel_mean": (0.4, 0.5, 0.6), "pixel_std": (0.2, 0.3, 0.25)}
    model = MaskedAutoencoder(**SIZES, **DECODER, **switches)
    patches = model.patchify(images())
    target = model.target(patches)
    drawn = model.drawn(target, model.statistics(patches))
    np.testing.assert_allclose(drawn.numpy(), patches.numpy(), atol=2e-5)  # two divisions and products in float32
    if channels_first and kind == "layernorm":
        plain = MaskedAutoencoder(**SIZES, **DECODER, **{**switches, "channels_first": False})
        np.testing.assert_allclose(channels_last(target).numpy(), plain.target(patches).numpy(), atol=1e-6)


def test_trained_positions_start_from_the_tables():
    fixed, trained = (MaskedAutoencoder(**SIZES, **DECODER, train_positions=value) for value in (False, True))
    for part in ("encoder", "decoder"):
        table, parameter = getattr(fixed, part).pos_embed, getattr(trained, part).pos_embed
        np.testing.assert_array_equal(table.numpy(), parameter.numpy())
        assert f"{part}.pos_embed" in dict(trained.named_parameters())
        assert f"{part}.pos_embed" not in dict(fixed.named_parameters())
    trained(images(), noise()).loss.backward()
    assert float(trained.encoder.pos_embed.grad.abs().sum()) > 0
