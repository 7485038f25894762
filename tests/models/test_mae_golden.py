"""MAE against facebookresearch/mae: forward, loss and every gradient.

Tolerances are those recorded with the golden data: the original's own float32-against-float64 noise is 2e-7 to 8e-7
of a tensor's maximum; outputs rtol 1e-4, losses 1e-5, gradients 1e-3 plus 1e-4 of the maximum, full size 1e-3.
"""

from __future__ import annotations

import json
import re
import zlib

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.models.mae import MaskedAutoencoder

SIZES = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
DECODER_SIZES = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def tiny(case, norm_pix_loss: bool) -> MaskedAutoencoder:
    sizes = {name: case.meta["ctor"][name] for name in SIZES + DECODER_SIZES}
    model = MaskedAutoencoder(**sizes, norm_pix_loss=norm_pix_loss)
    report = weights.load(model, case.group("param"), dialect="facebook")
    assert not report.missing
    assert not report.unexpected
    return model


def gradients(model) -> dict[str, np.ndarray]:
    values = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return weights.export(model, "facebook", values=values)


def without_k_bias(name: str, grad: np.ndarray) -> np.ndarray:
    """The k part of qkv.bias has a zero gradient in exact arithmetic and rounding noise otherwise."""
    if name.endswith("qkv.bias"):
        third = len(grad) // 3
        return np.concatenate([grad[:third], grad[2 * third :]])
    return grad


@pytest.mark.compat
@pytest.mark.parametrize("loss_only", [False, True])
@pytest.mark.parametrize(("variant", "norm"), [("", False), ("_norm", True)])
def test_tiny_forward_loss_and_every_gradient(golden, variant, norm, loss_only):
    case = golden("mae/fb_pretrain_tiny")
    model = tiny(case, norm)
    images, noise = paddle.to_tensor(case["input/images"]), paddle.to_tensor(case["input/noise"])
    out = model(images, noise, mask_ratio=case.meta["mask_ratio"], loss_only=loss_only)
    out.loss.backward()

    np.testing.assert_array_equal(out.mask.numpy(), case["output/mask"].astype(bool))
    np.testing.assert_array_equal(out.ids_restore.numpy(), case["output/ids_restore"])
    np.testing.assert_allclose(out.latent.numpy(), case["output/latent"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(float(out.loss), case[f"output/loss{variant}"], rtol=1e-5)
    if not loss_only:
        np.testing.assert_allclose(out.pred.numpy(), case["output/pred"], rtol=1e-4, atol=2e-5)
        pixels = model.unpatchify(out.pred).numpy()
        np.testing.assert_allclose(pixels, case["output/unpatchify_pred"], rtol=1e-4, atol=2e-5)

    expected, found = case.group(f"grad{variant}"), gradients(model)
    assert set(found) == set(expected)
    for name, grad in expected.items():
        ours, theirs = without_k_bias(name, found[name]), without_k_bias(name, grad)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


def test_tiny_targets(golden):
    case = golden("mae/fb_pretrain_tiny")
    images = paddle.to_tensor(case["input/images"])
    raw, norm = tiny(case, False), tiny(case, True)
    np.testing.assert_array_equal(raw.target(raw.patchify(images)).numpy(), case["output/target"])
    np.testing.assert_allclose(norm.target(norm.patchify(images)).numpy(), case["output/target_norm"], atol=2e-5)


def name_seeded(name: str, shape: list[int]) -> np.ndarray:
    """The recipe of the golden data for weights too large to store: normal draws seeded by the tensor's name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return value + np.float32(1) if re.search(r"(^|\.)\w*norm\d?\.weight$", name) else value


FULL = [
    "mae_vit_base_patch16",
    pytest.param("mae_vit_large_patch16", marks=pytest.mark.slow),
    pytest.param("mae_vit_huge_patch14", marks=pytest.mark.slow),
]


@pytest.mark.long
@pytest.mark.parametrize("name", FULL)
def test_full_size(golden, create_declared, name):
    case = golden(f"mae/fb_pretrain_full_{name}")
    shapes = dict(zip(case["names"].tolist(), json.loads(str(case["shapes"])), strict=True))
    model = create_declared(name, norm_pix_loss=True)
    trainable = [n for n, wanted in zip(case["names"].tolist(), case["requires_grad"], strict=True) if wanted]
    report = weights.load(model, {n: name_seeded(n, shapes[n]) for n in trainable}, dialect="facebook")
    assert set(report.missing) == {"encoder.pos_embed", "decoder.pos_embed"}
    assert sum(p.size for p in model.parameters()) == case.meta["n_params_trainable"]

    side, batch = 224, case.meta["batch"]
    images = np.random.default_rng(zlib.crc32(b"input/images")).standard_normal((batch, 3, side, side), np.float32)
    patches = model.encoder.num_patches
    noise = np.random.default_rng(zlib.crc32(b"input/noise")).random((batch, patches), np.float32)
    out = model(paddle.to_tensor(images), paddle.to_tensor(noise), mask_ratio=case.meta["mask_ratio"])
    np.testing.assert_array_equal(out.mask.numpy(), case["output/mask"].astype(bool))
    np.testing.assert_allclose(float(out.loss), case["output/loss_norm_pix"], rtol=1e-5)
    np.testing.assert_allclose(out.pred.numpy()[:, :4, :8], case["output/pred_slice"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.latent.numpy()[:, -1, :32], case["output/latent_last_token"], rtol=1e-3, atol=1e-4)

    out.loss.backward()
    found = gradients(model)
    assert set(found) == set(case["grad_names"].tolist())
    for grad_name, norm, head in zip(case["grad_names"].tolist(), case["grad_l2"], case["grad_head"], strict=True):
        assert np.linalg.norm(found[grad_name].astype(np.float64)) == pytest.approx(norm, rel=2e-3), grad_name
        ours = found[grad_name].reshape(-1)[:4]
        largest = np.abs(found[grad_name]).max()
        np.testing.assert_allclose(ours, head[: len(ours)], rtol=1e-3, atol=1e-4 * largest, err_msg=grad_name)
