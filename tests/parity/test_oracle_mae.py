"""The oracle of MAE against recordings of the originals and against numbers that they computed in float64."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.parity import oracle
from plsc_mae.parity.oracle.mae import IMPLEMENTATIONS, MAEOptions, forward

pytestmark = [pytest.mark.compat, pytest.mark.once]

SIZES = {"num_heads": 4, "decoder_num_heads": 4}
PRIV = {**IMPLEMENTATIONS["mae_priv"], "pixel_norm": "none"}
PYTORCH = {**IMPLEMENTATIONS["mae_pytorch"], "pixel_norm": "none"}

# Float64 results of the original code of three networks, with weights, images and noise from formulas (see
# `test_float64_records`): (loss, sum of the predictions).
FLOAT64_RECORDS = [
    ("facebook", {}, (0.5676851229, -18.41864519)),
    ("facebook", {"pixel_norm": "patch"}, (1.0637265340, -18.41864519)),
    ("facebook", {"pixel_norm": "patch", "norm_eps": 1e-5}, (1.0637267719, None)),
    ("gap", {"shared": True}, (0.5307900647, -12.78823091)),
    ("gap", {}, (0.5349321333, -12.80571585)),
    ("gap", {"shared": True, "pixel_norm": "layernorm"}, (1.0312630064, None)),
    ("gap", {"pixel_norm": "layernorm"}, (1.0353822847, None)),
    ("cls", {"shared": True}, (0.5385474887, -13.00040629)),
    ("cls", {}, (0.5421306934, -13.02408786)),
    ("cls", {"shared": True, "pixel_norm": "layernorm"}, (1.0396619871, None)),
    ("cls", {"pixel_norm": "layernorm"}, (1.0431347041, None)),
    ("pytorch", {"pixel_norm": "channel"}, (1.0154801546, -5.28656319)),
    ("pytorch", {}, (0.2571432698, -5.28656319)),
]


def waves(shape: tuple[int, ...], phase: float) -> np.ndarray:
    return 0.1 * np.sin(0.37 * np.arange(np.prod(shape)) + 1.3 * phase).reshape(shape)


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """Return names and PyTorch shapes for 2 encoder blocks of width 32 and 1 decoder block of width 16."""

    def block(prefix: str, dim: int) -> dict[str, tuple[int, ...]]:
        shapes = {"norm1.weight": (dim,), "norm1.bias": (dim,), "attn.qkv.weight": (3 * dim, dim)}
        shapes |= (
            {"attn.qkv.bias": (3 * dim,)} if kind == "facebook" else {"attn.q_bias": (dim,), "attn.v_bias": (dim,)}
        )
        shapes |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
        shapes |= {"norm2.weight": (dim,), "norm2.bias": (dim,), "mlp.fc1.weight": (4 * dim, dim)}
        shapes |= {"mlp.fc1.bias": (4 * dim,), "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
        return {f"{prefix}.{name}": shape for name, shape in shapes.items()}

    own = kind == "facebook"
    encoder, decoder = ("", "decoder_") if own else ("encoder.", "decoder.")
    shapes = {"mask_token": (1, 1, 16), f"{encoder}patch_embed.proj.weight": (32, 3, 8, 8)}
    shapes |= {f"{encoder}patch_embed.proj.bias": (32,), f"{encoder}norm.weight": (32,), f"{encoder}norm.bias": (32,)}
    shapes |= {f"{decoder}norm.weight": (16,), f"{decoder}norm.bias": (16,)}
    head, bridge = ("decoder_pred", "decoder_embed") if own else ("decoder.head", "encoder_to_decoder")
    shapes |= {
        f"{head}.weight": (192, 16),
        f"{head}.bias": (192,),
        f"{bridge}.weight": (16, 32),
        f"{bridge}.bias": (16,),
    }
    shapes |= block(f"{encoder}blocks.0", 32) | block(f"{encoder}blocks.1", 32) | block(f"{decoder}blocks.0", 16)
    if kind in ("facebook", "cls"):
        shapes[f"{encoder}cls_token"] = (1, 1, 32)
    if kind == "pytorch":
        del shapes["encoder_to_decoder.bias"]
    return shapes


@pytest.mark.parametrize(("kind", "switches", "expected"), FLOAT64_RECORDS)
def test_float64_records(kind, switches, expected, mae_weights):
    """Weights are sine waves whose phase is the rank of their name, so exchanged or ignored tensors are noticed."""
    shapes = shapes_of(kind)
    tensors = {name: waves(shapes[name], rank) for rank, name in enumerate(sorted(shapes))}
    tensors = {name: v + ("norm" in name and name.endswith("weight")) for name, v in tensors.items()}
    index = np.arange(2 * 3 * 32 * 32)
    images = np.sin(0.013 * index + 0.00007 * index**2).reshape(2, 3, 32, 32)
    noise = np.abs(np.sin(12.9898 * np.arange(1, 33)) * 43758.5453).reshape(2, 16) % 1

    switches = dict(switches)
    if switches.pop("shared", False):
        noise = noise[[0, 0]]
    options = {"facebook": {}, "cls": PRIV, "gap": {**PRIV, "class_token": False}, "pytorch": PYTORCH}
    out = forward(mae_weights(tensors), images, noise, MAEOptions(**SIZES, **{**options[kind], **switches}))

    loss, total = expected
    # MAE-priv computes its position tables in float32, the others in float64.
    assert float(out["loss"]) == pytest.approx(loss, rel=1e-6 if kind in ("gap", "cls") else 2e-10)
    if total is not None:
        hidden = out["mask"].astype(bool) if kind == "pytorch" else np.ones((2, 16), bool)
        assert out["pred"][hidden].sum() == pytest.approx(total, rel=1e-6 if kind in ("gap", "cls") else 1e-9)


def test_official_recording(golden, mae_weights):
    """The recordings are float32, except for the two losses, which also exist in float64."""
    case = golden("mae/fb_pretrain_tiny")
    weights = mae_weights(case.group("param"))
    for variant, norm in (("", "none"), ("_norm", "patch")):
        options = MAEOptions(**SIZES, mask_ratio=case.meta["mask_ratio"], pixel_norm=norm)
        images, noise = (case[f"input/{name}"].astype(np.float64) for name in ("images", "noise"))
        out = forward(weights, images, noise, options)
        np.testing.assert_array_equal(out["mask"], case["output/mask"])
        for name in ("latent", "pred"):
            np.testing.assert_allclose(out[name], case[f"output/{name}"], atol=2e-6 * np.abs(out[name]).max())
        np.testing.assert_allclose(out["target"], case[f"output/target{variant}"], atol=2e-6)
        assert float(out["loss"]) == pytest.approx(float(case[f"output_f64/loss{variant}"]), rel=1e-9)
        # Position tables from the file and computed ones give the same loss.
        given = forward(weights, images, noise, MAEOptions(**SIZES, pixel_norm=norm, positions="given"))
        np.testing.assert_allclose(given["loss"], out["loss"], rtol=1e-12)


@pytest.mark.parametrize("kind", ["cls", "gap"])
@pytest.mark.parametrize("shuffle", ["shared_shuffle", "per_sample"])
@pytest.mark.parametrize(("variant", "norm"), [("raw", "none"), ("norm", "layernorm")])
def test_mae_priv_recording(golden, mae_weights, kind, shuffle, variant, norm):
    case = golden(f"mae/priv_pretrain_tiny_{kind}")
    switches = {**PRIV, "class_token": kind == "cls", "pixel_norm": norm, "mask_ratio": case.meta["mask_ratio"]}
    noise = case["input/noise"].astype(np.float64)
    noise = noise[[0, 0]] if shuffle == "shared_shuffle" else noise
    images = case["input/images"].astype(np.float64)
    out = forward(mae_weights(case.group("param")), images, noise, MAEOptions(**SIZES, **switches))
    np.testing.assert_allclose(out["latent"], case[f"output/encoded_{shuffle}"], atol=5e-6)
    np.testing.assert_allclose(out["pred"], case[f"output/decoded_{shuffle}"], atol=5e-6)
    np.testing.assert_allclose(out["target"], case[f"output/target_{variant}"], atol=5e-6)
    assert float(out["loss"]) == pytest.approx(float(case[f"output/loss_{variant}_{shuffle}"]), rel=5e-7)


@pytest.mark.parametrize(("variant", "norm"), [("raw", "none"), ("norm", "channel")])
def test_mae_pytorch_recording(golden, mae_weights, variant, norm):
    case = golden("mae/mp_pretrain_tiny")
    options = MAEOptions(**SIZES, **{**PYTORCH, "pixel_norm": norm}, mask_ratio=case.meta["mask_ratio"])
    images, mask = case["input/images"].astype(np.float64), case["input/mask"]
    out = forward(mae_weights(case.group("param")), images, mask.astype(np.float64), options)
    np.testing.assert_array_equal(out["mask"].astype(bool), mask)
    np.testing.assert_allclose(out["latent"], case["output/encoded"], atol=5e-6)
    np.testing.assert_allclose(out["pred"][mask].reshape(2, -1, 48), case["output/pred"], atol=5e-6)
    np.testing.assert_allclose(out["target"][mask].reshape(2, -1, 48), case[f"output/target_{variant}"], atol=5e-6)
    assert float(out["loss"]) == pytest.approx(float(case[f"output/loss_{variant}"]), rel=5e-7)


@pytest.mark.parametrize(
    ("patches", "ratio", "floor", "ceil"),
    [(196, 0.6, 78, 79), (196, 0.8, 39, 40), (196, 0.9, 19, 20), (196, 0.75, 49, 49), (256, 0.7, 76, 77)],
)
def test_the_two_ways_to_count_visible_patches(patches, ratio, floor, ceil):
    from plsc_mae.parity.oracle.mae import count_visible

    for visible, expected in (("floor", floor), ("ceil", ceil)):
        assert count_visible(patches, MAEOptions(**SIZES, mask_ratio=ratio, visible=visible)) == expected


def test_the_oracle_imports_numpy_and_itself_only():
    files = sorted(Path(oracle.__file__).parent.glob("*.py"))
    assert len(files) >= 5
    allowed = {"numpy", *sys.stdlib_module_names}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in allowed or name.startswith("plsc_mae.parity.oracle"), path


def test_erf_is_exact_to_float64():
    """The reference is the Taylor series, summed in exact fractions; negative arguments mirror positive ones."""
    from fractions import Fraction
    from math import factorial, pi, sqrt

    from plsc_mae.parity.oracle.layers import erf

    points = np.array([0.0, 0.1, 0.5, 1.0, 1.75, 2.5])
    series = []
    for x in map(Fraction, points.tolist()):
        total = sum(Fraction((-1) ** n) * x ** (2 * n + 1) / (factorial(n) * (2 * n + 1)) for n in range(60))
        series.append(2 / sqrt(pi) * float(total))
    np.testing.assert_allclose(erf(points), series, rtol=4e-16)
    np.testing.assert_array_equal(erf(-points), -erf(points))
    assert json.dumps(erf(np.array([[6.0]])).tolist()) == "[[1.0]]"
