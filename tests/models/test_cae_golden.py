"""CAE against Atten4Vis/CAE: forward, losses and every gradient.

Tolerances are those recorded with the golden data: the original's own float32-against-float64 noise is 1e-6 for logits
and 1e-7 for gradients; outputs rtol 1e-4 and atol 2e-5, losses 1e-5, gradients 1e-3 and 1e-5, full size 1e-3 and 2e-4.
"""

from __future__ import annotations

import json
import re
import zlib

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from plsc_mae import weights
from plsc_mae.losses import alignment_loss
from plsc_mae.masking import split_mask
from plsc_mae.models.cae import CAEOutput, ContextAutoencoder
from plsc_mae.models.layers import patchify
from plsc_mae.optim import weight_decay_groups

RENAMED = {"decoder_depth": "num_decoder_self_attention"}
NOT_OURS = ("qkv_bias", "norm_eps", "num_masked", "num_patches")
# A constant added to every key changes no softmax: the gradient is zero in exact arithmetic, rounding noise otherwise.
NOISE = re.compile(r"norm1_k\.bias$")


def tiny(case, **overrides) -> ContextAutoencoder:
    sizes = {RENAMED.get(name, name): value for name, value in case.meta["constructor"].items() if name not in NOT_OURS}
    return ContextAutoencoder(**{**sizes, **overrides})


def losses(out: CAEOutput, labels: np.ndarray, weight: float):
    main = F.cross_entropy(out.logits, paddle.to_tensor(labels.astype(np.int64)))
    return main, weight * alignment_loss(out.latent, out.latent_target)


def gradients(model) -> dict[str, np.ndarray]:
    values = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return weights.export(model, "cae", values=values)


@pytest.mark.compat
@pytest.mark.parametrize("name", ["tiny", "tiny_proj", "tiny_nolayerscale", "tiny_align_differs"])
def test_tiny_forward_losses_and_every_gradient(golden, name):
    case = golden(f"cae/cae_pretrain_{name}")
    model = tiny(case, dual_path_ema=0.5 if name == "tiny_align_differs" else 0.0)
    report = weights.load(model, case.group("param"), dialect="cae")
    assert not report.missing
    assert not report.unexpected
    images, mask = paddle.to_tensor(case["input/x"]), paddle.to_tensor(case["input/bool_masked_pos"].astype(bool))
    labels = case["input/tokens"][case["input/bool_masked_pos"].astype(bool)]
    np.testing.assert_array_equal(labels, case["output/labels"])

    out = model(images, mask)
    main, align = losses(out, labels, case.meta["align_loss_weight"])
    (main + align).backward()
    for ours, theirs in (
        (out.logits, "logits"),
        (out.latent, "latent_predict"),
        (out.latent_target, "latent_target"),
    ):
        np.testing.assert_allclose(ours.numpy(), case[f"output/{theirs}"], rtol=1e-4, atol=2e-5, err_msg=theirs)
    assert float(main) == pytest.approx(float(case["output/loss_main"]), rel=1e-5)
    assert float(align) == pytest.approx(float(case["output/loss_align_weighted"]), rel=1e-5)
    assert float(main + align) == pytest.approx(float(case["output/loss_total"]), rel=1e-5)
    ordered = np.sort(case["output/logits"], axis=-1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 3e-3  # so rounding changes no predicted token
    accuracy = (out.logits.numpy().argmax(-1) == labels).mean()
    assert accuracy == pytest.approx(float(case["output/mlm_acc"]))
    if name != "tiny_align_differs":
        ids, _ = split_mask(mask)
        encoded = model.encoder.encode(patchify(images, model.patch_size), ids)
        np.testing.assert_allclose(encoded.numpy(), case["output/encoder_unmasked"], rtol=1e-4, atol=2e-5)

    expected, found = case.group("grad"), gradients(model)
    assert set(found) == set(expected)
    for grad_name, grad in expected.items():
        if not NOISE.search(grad_name):
            np.testing.assert_allclose(found[grad_name], grad, rtol=1e-3, atol=1e-5, err_msg=grad_name)


@pytest.mark.compat
def test_the_target_of_another_alignment_encoder_and_of_the_encoder(golden):
    """A file may hold an alignment encoder that differs; the original uses it once, then always the encoder."""
    case = golden("cae/cae_pretrain_tiny_align_differs")
    images, mask = paddle.to_tensor(case["input/x"]), paddle.to_tensor(case["input/bool_masked_pos"].astype(bool))
    averaged = tiny(case, dual_path_ema=0.5)
    assert not weights.load(averaged, case.group("param"), dialect="cae").missing
    expected = case["output/latent_target"]
    for _ in range(2):  # a forward pass moves no average
        np.testing.assert_allclose(averaged(images, mask).latent_target.numpy(), expected, rtol=1e-4, atol=2e-5)

    shared = tiny(case)
    report = weights.load(shared, case.group("param"), dialect="cae")
    assert not report.missing
    assert not report.unexpected
    out = shared(images, mask)
    expected = case["output/second_forward/latent_target"]
    np.testing.assert_allclose(out.latent_target.numpy(), expected, rtol=1e-4, atol=2e-5)
    main, align = losses(out, case["output/labels"], case.meta["align_loss_weight"])
    for ours, theirs in ((main, "loss_main"), (align, "loss_align_weighted")):
        if f"output/second_forward/{theirs}" in case:
            assert float(ours) == pytest.approx(float(case[f"output/second_forward/{theirs}"]), rel=1e-5)


def phased(name: str, shape: list[int]) -> np.ndarray:
    """Weights as sines of their flat index, with a phase by the tensor's name."""
    phase = 2 * np.pi * (zlib.crc32(name.encode()) % 997) / 997
    value = 0.05 * np.sin(phase + 0.11 * np.arange(np.prod(shape)))
    value += ("norm" in name and name.endswith("weight")) + 0.1 * ("gamma" in name)
    return value.reshape(shape).astype(np.float32)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("width", "logits", "sums", "ce", "align", "norms"),
    [
        (
            32,
            [-0.132283, -0.1584128, 0.4999935, -0.7174925],
            (334.38953, 328.00248),
            4.148639,
            4.466598,
            {"mask_token": 13.535736, "encoder.patch_embed.proj.bias": 0.001419, "regresser.norm.weight": 1.218302},
        ),
        (
            48,
            [-1.0165852, -1.1858751, -0.2411209, 0.9392683],
            (489.15112, 490.9098),
            4.406361,
            4.527474,
            {"mask_token": 16.852716, "encoder_to_regresser.weight": 0.17184, "decoder.head.bias": 0.294152},
        ),
    ],
)
def test_measured_values(width, logits, sums, ce, align, norms):
    """Values measured on the original for weights and images made of sines."""
    model = ContextAutoencoder(
        img_size=64,
        embed_dim=32,
        depth=2,
        num_heads=4,
        decoder_embed_dim=width,
        regressor_depth=2,
        num_decoder_self_attention=2,
        decoder_num_heads=4,
        decoder_num_classes=50,
    )
    zeros = {name: np.zeros(tensor.shape, np.float32) for name, tensor in model.state_dict().items()}
    foreign = {name: value.shape for name, value in weights.export(model, "cae", values=zeros).items()}
    names = [name for name in foreign if not name.endswith("pos_embed")]
    weights.load(model, {name: phased(name, foreign[name]) for name in names}, dialect="cae")
    images = 0.5 * np.sin(0.013 * np.arange(2 * 3 * 64 * 64)).reshape(2, 3, 64, 64)
    mask = np.zeros([2, 16], bool)
    mask[0, [1, 2, 5, 6, 9, 15]] = mask[1, [0, 3, 4, 7, 8, 11]] = True
    out = model(paddle.to_tensor(images.astype(np.float32)), paddle.to_tensor(mask))
    main, weighted = losses(out, 3 * np.arange(12) % 50, 2.0)
    (main + weighted).backward()

    np.testing.assert_allclose(out.logits.numpy()[0, :4], logits, atol=2e-5)
    assert np.abs(out.logits.numpy()).sum(dtype=np.float64) == pytest.approx(sums[0], rel=1e-5)
    assert np.abs(out.latent.numpy()).sum(dtype=np.float64) == pytest.approx(sums[1], rel=1e-5)
    assert float(main) == pytest.approx(ce, rel=1e-5)
    assert float(weighted) == pytest.approx(align, rel=1e-5)
    found = gradients(model)
    for name, norm in norms.items():
        assert np.linalg.norm(found[name].astype(np.float64)) == pytest.approx(norm, rel=1e-3), name


def name_seeded(name: str, shape: list[int]) -> np.ndarray:
    """The recipe of the golden data for weights too large to store: normal draws seeded by the tensor's name."""
    value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32) * np.float32(0.02)
    *_, parent, last = ["", *name.split(".")]
    return value + np.float32(last == "weight" and "norm" in parent) + np.float32(0.5 * last.startswith("gamma_"))


@pytest.mark.long
@pytest.mark.parametrize("name", ["base", pytest.param("large", marks=pytest.mark.slow)])
def test_full_size(golden, create_declared, name):
    case = golden(f"cae/cae_pretrain_full_{name}")
    model = create_declared(case.meta["model"])
    shapes = dict(zip(case.meta["names"], case.meta["shapes"], strict=True))
    drawn = {n: name_seeded(n, shape) for n, shape in shapes.items() if not n.endswith("pos_embed")}
    assert set(weights.load(model, drawn, dialect="cae").missing) == {"encoder.pos_embed", "rd_pos_embed"}
    assert sum(p.size for p in model.parameters()) == case.meta["num_params_requires_grad"]
    for foreign, norm in zip(case.meta["names"], case["output/param_norm"], strict=True):
        if foreign in drawn:
            assert np.linalg.norm(drawn[foreign].astype(np.float64)) == pytest.approx(norm, rel=1e-5), foreign

    seed = int(re.search(r"default_rng\((\d+)\)", case.meta["input_rule"])[1])
    images = np.random.default_rng(seed).standard_normal((2, 3, 224, 224), np.float32)
    mask = case["input/bool_masked_pos"].astype(bool)
    out = model(paddle.to_tensor(images), paddle.to_tensor(mask))
    main, align = losses(out, case["input/tokens"][mask], case.meta["align_loss_weight"])
    logits = out.logits.numpy()
    np.testing.assert_allclose(logits[:4, :64], case["output/logits_slice"], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(logits[-1, -64:], case["output/logits_last_row_slice"], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(
        np.linalg.norm(logits.astype(np.float64), axis=-1), case["output/logits_row_norm"], rtol=1e-3
    )
    sums = paddle.logsumexp(out.logits, axis=-1).numpy()
    np.testing.assert_allclose(sums, case["output/logits_row_logsumexp"], rtol=1e-5)
    for ours, theirs in ((out.latent, "latent_predict"), (out.latent_target, "latent_target")):
        np.testing.assert_allclose(
            ours.numpy()[:, :2, :64], case[f"output/{theirs}_slice"], rtol=1e-3, atol=2e-4, err_msg=theirs
        )
        norms = np.linalg.norm(ours.numpy().astype(np.float64), axis=-1)
        np.testing.assert_allclose(norms, case[f"output/{theirs}_token_norm"], rtol=1e-3, err_msg=theirs)
    certain = case["output/logits_row_top2_margin"] > 1e-3
    np.testing.assert_array_equal(logits.argmax(-1)[certain], case["output/logits_row_argmax"][certain])
    assert float(main) == pytest.approx(float(case["output/loss_main"]), rel=1e-4)
    assert float(align) == pytest.approx(float(case["output/loss_align_weighted"]), rel=1e-4)

    (main + align).backward()
    found, slices = gradients(model), case.group("output/grad_slice")
    total = np.sqrt(sum(float(np.square(grad, dtype=np.float64).sum()) for grad in found.values()))
    assert total == pytest.approx(float(case["output/global_grad_norm"]), rel=1e-4)
    norms = dict(zip(case.meta["names"], case["output/grad_norm"], strict=True))
    assert set(found) == {n for n, norm in norms.items() if norm >= 0}
    for grad_name, grad in found.items():
        if NOISE.search(grad_name):
            continue
        assert np.linalg.norm(grad.astype(np.float64)) == pytest.approx(norms[grad_name], rel=2e-3, abs=1e-6), grad_name
        if grad_name in slices:
            start, largest = slices[grad_name], np.abs(grad).max()
            np.testing.assert_allclose(
                grad.reshape(-1)[: start.size], start, rtol=1e-3, atol=1e-4 * largest, err_msg=grad_name
            )


def test_shapes_and_counts(root, create_declared):
    """Names, shapes and counts of every published size, at the decoder width of the encoder and at 768."""
    cases = json.loads((root / "tests/golden/cae/cae_pretrain_shapes.json").read_text())
    for name in ("tiny_decoder768", "tiny_decoder192", "small_decoder384", "large_decoder1024"):
        size, _, width = name.partition("_decoder")
        model = create_declared(f"cae_{size}_patch16_224_8k_vocab", decoder_embed_dim=int(width))
        zeros = {n: np.zeros(tensor.shape, np.uint8) for n, tensor in model.state_dict().items()}
        found = {n: list(value.shape) for n, value in weights.export(model, "cae", values=zeros).items()}
        recorded = cases[name]["params"]
        shapes = {row["name"]: row["shape"] for row in recorded} if isinstance(recorded, list) else recorded
        assert found == {n: s for n, s in shapes.items() if not n.startswith("alignment_encoder.")}, name
        assert sum(p.size for p in model.parameters()) == cases[name]["trainable"], name


@pytest.mark.compat
def test_weight_decay_groups(root):
    recorded = json.loads((root / "tests/golden/cae/optimizer_groups.json").read_text())["pretrain"]
    sizes = recorded["constructor"]
    model = ContextAutoencoder(
        img_size=sizes["img"],
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        regressor_depth=sizes["reg"],
        num_decoder_self_attention=sizes["dec"],
        decoder_embed_dim=sizes["ddim"],
        decoder_num_heads=sizes["dheads"],
        decoder_num_classes=sizes["vocab"],
    )
    found = {
        group.weight_decay: set(weights.export(model, "cae", {name: np.zeros(1) for name in group.names}))
        for group in weight_decay_groups(model.named_parameters(), recorded["weight_decay"])
    }
    assert found == {group["weight_decay"]: set(group["params"]) for group in recorded["groups"]}
