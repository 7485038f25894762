"""Classifiers against the four originals: forward, loss, every gradient, batch norm statistics, steps of a probe.

Tolerances are those recorded with the golden data: outputs rtol 1e-4 and atol 2e-5, losses 1e-5, gradients 1e-3 and
1e-5 (CAE) or 1e-4 of the tensor's maximum (MAE); full size 1e-3.
"""

from __future__ import annotations

import functools
import json
import zlib

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from plsc_mae import weights
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.optim import LARS

SIZES = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes")
# Not weights of ours: computed, or a counter that nothing reads.
COMPUTED = ("relative_position_index", "num_batches_tracked")


def gradients(model, dialect: str) -> dict[str, np.ndarray]:
    values = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return weights.export(model, dialect, values=values)


def loaded(model, params: dict[str, np.ndarray], dialect: str):
    report = weights.load(model, params, dialect=dialect)
    assert not report.missing
    assert all(name.endswith(COMPUTED) for name in report.unexpected), report.unexpected
    return model


def checked_gradients(model, case, dialect: str) -> dict[str, np.ndarray]:
    """Compare features, logits and loss with a recorded fine-tuning case, and return the gradients to compare."""
    images, labels = paddle.to_tensor(case["input/images"]), paddle.to_tensor(case["input/labels"].astype(np.int64))
    np.testing.assert_allclose(model.pooled(images).numpy(), case["output/features"], rtol=1e-4, atol=2e-5)
    logits = model(images)
    np.testing.assert_allclose(logits.numpy(), case["output/logits"], rtol=1e-4, atol=2e-5)
    loss = F.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(float(case["output/loss_ce"]), rel=1e-5)
    loss.backward()
    found = gradients(model, dialect)
    assert set(found) == set(case.group("grad"))
    return found


@pytest.mark.compat
@pytest.mark.parametrize("name", ["cls", "gap"])
def test_mae_fine_tuning(golden, name):
    case = golden(f"mae/fb_vit_tiny_{name}")
    sizes = {key: case.meta["ctor"][key] for key in SIZES}
    model = ImageClassifier(**sizes, global_pool=case.meta["ctor"]["global_pool"], positions="learned")
    loaded(model, case.group("param"), "facebook")
    expected, found = case.group("grad"), checked_gradients(model, case, "facebook")
    for key, grad in expected.items():
        ours = found[key]
        if key.endswith("qkv.bias"):  # the part of k is zero in exact arithmetic
            third = len(grad) // 3
            ours, grad = np.delete(ours, slice(third, 2 * third)), np.delete(grad, slice(third, 2 * third))
        np.testing.assert_allclose(ours, grad, rtol=1e-3, atol=1e-4 * np.abs(grad).max(), err_msg=key)


CAE = {
    "finetune_meanpool_relpos_sincos": {"relative_positions": "per block"},
    "finetune_cls_sincos": {"global_pool": False},
    "finetune_sharedrelpos_nopos_nolayerscale": {
        "relative_positions": "shared",
        "positions": "none",
        "layer_scale": 0.0,
    },
    "linear_standard_cls": {"global_pool": False, "probe": "standard"},
    # With mean pooling left on, the original's probe takes the class token without any norm.
    "linear_standard_meanpool_flag": {"global_pool": False, "probe": "standard", "final_norm": False},
    "attentive_cls": {"probe": "attentive", "relative_positions": "per block"},
}


def cae(case, **options) -> ImageClassifier:
    sizes = {key: value for key, value in case.meta["constructor"].items() if key in SIZES}
    return ImageClassifier(**{"k_bias": False, "layer_scale": 0.1, "positions": "row first", **sizes, **options})


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(CAE))
def test_cae_fine_tuning_and_probing(golden, name):
    case = golden(f"cae/cae_vit_tiny_{name}")
    model = loaded(cae(case, **CAE[name]), case.group("param"), "beit")
    images, labels = paddle.to_tensor(case["input/x"]), paddle.to_tensor(case["input/target"].astype(np.int64))
    model.train()
    logits = model(images)
    np.testing.assert_allclose(logits.numpy(), case["output/train/logits"], rtol=1e-4, atol=2e-5)
    loss = F.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(float(case["output/train/loss_ce"]), rel=1e-5, abs=1e-6)
    loss.backward()
    expected, found = case.group("grad"), gradients(model, "beit")
    assert set(found) == set(expected)
    for key, grad in expected.items():
        if not key.endswith("norm_k.bias"):  # zero in exact arithmetic
            np.testing.assert_allclose(found[key], grad, rtol=1e-3, atol=1e-5, err_msg=key)

    state = weights.export(model, "beit")
    for key, value in case.group("output/buffer_after_train_forward").items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_allclose(state[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    model.eval()
    expected_eval = "output/eval_is_train_False/logits" if name == "attentive_cls" else "output/eval/logits"
    np.testing.assert_allclose(model(images).numpy(), case[expected_eval], rtol=1e-4, atol=2e-5)
    after = weights.export(model, "beit")
    for key, value in state.items():
        np.testing.assert_array_equal(after[key], value, err_msg=f"evaluation moved {key}")


@pytest.mark.compat
def test_probes_train_nothing_else(golden):
    for name in ("linear_standard_cls", "attentive_cls"):
        case = golden(f"cae/cae_vit_tiny_{name}")
        model = cae(case, **CAE[name])
        trained = {key: np.zeros(1) for key, p in model.named_parameters() if not p.stop_gradient}
        assert set(weights.export(model, "beit", values=trained)) == set(case.meta["trainable"])


@pytest.mark.compat
def test_mae_linear_probe(golden):
    """Three LARS steps from start to end: logits, losses, gradients, running statistics, weights, evaluation.

    rtol 1e-4 and atol 2e-5 as recorded; the frozen encoder stays as it is bit for bit.
    """
    case, trunk = golden("mae/fb_linprobe_tiny"), golden("mae/fb_vit_tiny_cls")
    sizes = {key: case.meta["ctor"][key] for key in SIZES}
    model = ImageClassifier(**sizes, global_pool=False, probe="standard", positions="learned")
    params = {key.replace("head.", "head.1."): value for key, value in trunk.group("param").items()}
    dim = sizes["embed_dim"]
    params |= {"head.0.running_mean": np.zeros(dim, np.float32), "head.0.running_var": np.ones(dim, np.float32)}
    loaded(model, params, "facebook").train()
    before = {name: tensor.numpy() for name, tensor in model.encoder.state_dict().items()}
    optimizer = LARS(float(case["input/lr"]), [p for p in model.parameters() if not p.stop_gradient])
    for step in range(3):
        images, labels = (paddle.to_tensor(case[f"input/{name}{step}"]) for name in ("images", "labels"))
        logits = model(images)
        np.testing.assert_allclose(logits.numpy(), case[f"output/logits{step}"], rtol=1e-4, atol=2e-5)
        loss = F.cross_entropy(logits, labels.astype("int64"))
        assert float(loss) == pytest.approx(float(case[f"output/loss{step}"]), rel=1e-5)
        loss.backward()
        found = gradients(model, "facebook")
        assert set(found) == set(case.meta["trainable"])
        for key, grad in found.items():
            np.testing.assert_allclose(grad, case[f"grad{step}/{key}"], rtol=1e-3, atol=1e-5)
        for name, running in (("mean", model.head[0].running_mean), ("var", model.head[0].running_var)):
            np.testing.assert_allclose(running.numpy(), case[f"output/running_{name}{step}"], rtol=1e-5, atol=1e-6)
        optimizer.step()
        optimizer.clear_grad()
    state = weights.export(model, "facebook")
    for key in case.meta["trainable"]:
        np.testing.assert_allclose(state[key], case[f"output/final_{key}"], rtol=1e-4, atol=2e-5, err_msg=key)
    for name, tensor in model.encoder.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name], err_msg=name)
    model.eval()
    logits = model(paddle.to_tensor(case["input/images0"])).numpy()
    np.testing.assert_allclose(logits, case["output/eval_logits"], rtol=1e-4, atol=2e-5)


PRIV = {"k_bias": False, "positions": "row first", "fc_norm": True}
MP = {"k_bias": False, "positions": "sinusoid", "class_token": False}
OTHERS = {
    "priv_vit_tiny_cls": {**PRIV, "global_pool": False},
    "priv_vit_tiny_gap": {**PRIV, "class_token": False},
    "priv_vit_tiny_gap_layerscale": {**PRIV, "class_token": False, "layer_scale": 0.1},
    "mp_vit_tiny_mean": MP,
    "mp_vit_tiny_first": {**MP, "global_pool": False},
}


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_mae_priv_and_mae_pytorch(golden, name):
    """Gradients are recorded whole or, where a file says so, by their norms; those to 1e-4."""
    case = golden(f"mae/{name}")
    sizes = {key: case.meta["ctor"][key] for key in SIZES}
    model = loaded(ImageClassifier(**sizes, **OTHERS[name]), case.group("param"), "beit")
    assert set(weights.export(model, "beit")) == set(case.group("param"))
    expected, found = case.group("grad"), checked_gradients(model, case, "beit")
    for key, grad in expected.items():
        if grad.ndim:
            np.testing.assert_allclose(found[key], grad, rtol=1e-3, atol=1e-4 * np.abs(grad).max(), err_msg=key)
        else:
            assert np.linalg.norm(found[key].astype(np.float64)) == pytest.approx(float(grad), rel=1e-4), key


@pytest.mark.compat
def test_mae_priv_linear_probe(golden):
    case = golden("mae/priv_vit_tiny_cls_linprobe")
    sizes = {key: case.meta["ctor"][key] for key in SIZES}
    model = ImageClassifier(**sizes, global_pool=False, probe="raw", k_bias=False, positions="row first")
    params = case.group("param")
    loaded(model, params, "beit")
    assert set(weights.export(model, "beit")) == {name for name in params if not name.endswith(COMPUTED)}
    images = paddle.to_tensor(case["input/images"])
    model.eval()
    np.testing.assert_allclose(model.pooled(images).numpy(), case["output/features"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(model(images).numpy(), case["output/logits"], rtol=1e-4, atol=2e-5)
    model.train()
    logits = model(images)
    np.testing.assert_allclose(logits.numpy(), case["output/logits_train"], rtol=1e-4, atol=2e-5)
    state = weights.export(model, "beit")
    for part in ("mean", "var"):
        expected = case[f"output/running_{part}_after"]
        np.testing.assert_allclose(state[f"fc_norm.running_{part}"], expected, rtol=1e-5, atol=1e-6)
    logits.sum().backward()
    assert set(gradients(model, "beit")) == {"head.weight", "head.bias"}


@functools.cache
def normal(name: str, *shape: int) -> np.ndarray:
    """Draw values seeded by a tensor's name, once for all networks that have it."""
    value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    value *= np.float32(0.02)
    value.flags.writeable = False
    return value


@pytest.fixture(autouse=True, scope="module")
def forget_draws():
    """Free them, a third of a gigabyte, behind the last test of this file."""
    yield
    normal.cache_clear()


def drawn(name: str, shape: list[int], *, gammas: bool) -> np.ndarray:
    """The recipe of the golden data for weights too large to store: normal draws seeded by the tensor's name."""
    value = normal(name, *shape)
    *_, parent, last = ["", *name.split(".")]
    shift = float(last == "weight" and "norm" in parent) + 0.5 * (gammas and last.startswith("gamma_"))
    return value + np.float32(shift) if shift else value


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param("cls", marks=pytest.mark.slow), "gap"])
def test_mae_base(golden, create_declared, name):
    case = golden(f"mae/fb_vit_base_{name}")
    shapes = dict(zip(case["names"].tolist(), json.loads(str(case["shapes"])), strict=True))
    model = create_declared("vit_base_patch16", global_pool=case.meta["global_pool"])
    loaded(model, {key: drawn(key, shape, gammas=False) for key, shape in shapes.items()}, "facebook")
    assert sum(p.size for p in model.parameters()) == case.meta["n_params"]
    seed = zlib.crc32(b"input/images")
    images = np.random.default_rng(seed).standard_normal((2, 3, 224, 224), np.float32)
    model.eval()
    with paddle.no_grad():
        features = model.pooled(paddle.to_tensor(images))
        logits = model.head(features)
    np.testing.assert_allclose(features.numpy(), case["output/features"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits.numpy(), case["output/logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_cae_base(golden, create_declared):
    case = golden("cae/cae_vit_base_finetune")
    model = create_declared("cae_base_patch16_224")
    shapes = dict(zip(case.meta["names"], case.meta["shapes"], strict=True))
    params = {key: drawn(key, shape, gammas=True) for key, shape in shapes.items() if key != "pos_embed"}
    report = weights.load(model, params, dialect="beit")
    assert report.missing == ["encoder.pos_embed"]
    for key, norm in zip(case.meta["names"], case["output/param_norm"], strict=True):
        if key in params:
            assert np.linalg.norm(params[key].astype(np.float64)) == pytest.approx(norm, rel=1e-5), key
    images = paddle.to_tensor(np.random.default_rng(7200).standard_normal((2, 3, 224, 224), np.float32))
    logits = model(images)
    np.testing.assert_allclose(logits.numpy(), case["output/logits"], rtol=1e-3, atol=2e-4)
    loss = F.cross_entropy(logits, paddle.to_tensor(case["input/target"].astype(np.int64)))
    assert float(loss) == pytest.approx(float(case["output/loss_ce"]), rel=1e-4)
    loss.backward()
    found = gradients(model, "beit")
    norms = dict(zip(case.meta["names"], case["output/grad_norm"], strict=True))
    assert set(found) == {key for key, norm in norms.items() if norm >= 0}
    for key, grad in found.items():
        assert np.linalg.norm(grad.astype(np.float64)) == pytest.approx(norms[key], rel=2e-3, abs=1e-6), key


@pytest.mark.slow
def test_cae_base_probe(golden, create_declared):
    case = golden("cae/cae_vit_base_linear")
    model = create_declared("cae_base_patch16_224", relative_positions="none", global_pool=False, probe="standard")
    shapes = dict(zip(case.meta["names"], case.meta["shapes"], strict=True))
    params = {key: drawn(key, shape, gammas=True) for key, shape in shapes.items() if key != "pos_embed"}
    weights.load(model, {key.replace("head.", "head.1."): value for key, value in params.items()}, dialect="beit")
    images = paddle.to_tensor(np.random.default_rng(7200).standard_normal((2, 3, 224, 224), np.float32))
    model.eval()
    with paddle.no_grad():
        np.testing.assert_allclose(model(images).numpy(), case["output/eval/logits"], rtol=1e-3, atol=2e-4)
    model.train()
    # Batch statistics of two images magnify rounding; the recording says 5e-2.
    np.testing.assert_allclose(model(images).numpy(), case["output/train/logits"], rtol=5e-2, atol=5e-2)


@pytest.mark.long
def test_cae_base_attentive_probe(golden, create_declared):
    """The running statistics are fresh, as in the recording."""
    case = golden("cae/cae_vit_base_attentive")
    model = create_declared("cae_base_patch16_224", probe="attentive")
    shapes = dict(zip(case.meta["names"], case.meta["shapes"], strict=True))
    params = {key: drawn(key, shape, gammas=True) for key, shape in shapes.items() if key != "pos_embed"}
    report = weights.load(model, params, dialect="beit")
    assert report.missing == ["encoder.pos_embed", "fc_norm.running_mean", "fc_norm.running_var"]
    assert sum(p.size for p in model.parameters()) == case.meta["num_params"] - model.encoder.pos_embed.size
    trained = {name for name, p in model.named_parameters() if not p.stop_gradient}
    assert trained == set(case.meta["trainable"])
    images = paddle.to_tensor(np.random.default_rng(7200).standard_normal((2, 3, 224, 224), np.float32))
    model.eval()
    with paddle.no_grad():
        features = model.pooled(images)
        logits = model.head(features).numpy()
    np.testing.assert_allclose(features.numpy(), case["output/head_input"], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(logits, case["output/eval_is_train_False/logits"], rtol=1e-3, atol=2e-4)
