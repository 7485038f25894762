"""The oracle of CAE against float32 recordings of Atten4Vis/CAE, whose rounding error is about 1e-6."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.parity.oracle.cae import CAEOptions, forward

pytestmark = [pytest.mark.compat, pytest.mark.once]

CASES = ("tiny", "tiny_proj", "tiny_nolayerscale", "tiny_align_differs")
OUTPUTS = {
    "encoder.norm": "encoder_unmasked",
    "latent": "latent_predict",
    "alignment.target": "latent_target",
    "logits": "logits",
}


def run(case, weights) -> dict[str, np.ndarray]:
    sizes = case.meta["constructor"]
    heads = {name: sizes[name] for name in ("num_heads", "decoder_num_heads")}
    options = CAEOptions(**heads, align_loss_weight=case.meta["align_loss_weight"])
    images, mask = case["input/x"].astype(np.float64), case["input/bool_masked_pos"]
    return forward(weights, images, mask, case["input/tokens"][mask], options)


@pytest.mark.parametrize("name", CASES)
def test_official_recording(golden, cae_weights, name):
    case = golden(f"cae/cae_pretrain_{name}")
    out = run(case, cae_weights(case.group("param")))
    for ours, theirs in OUTPUTS.items():
        expected = case[f"output/{theirs}"]
        np.testing.assert_allclose(out[ours], expected, atol=3e-6 * np.abs(expected).max(), err_msg=ours)
    for ours, theirs in (("loss_main", "loss_main"), ("loss_align", "loss_align_weighted"), ("loss", "loss_total")):
        assert float(out[ours]) == pytest.approx(float(case[f"output/{theirs}"]), rel=1e-6)


def test_alignment_encoder_is_used(golden, cae_weights):
    """The original uses the stored alignment encoder in its first forward pass and the encoder itself later."""
    case = golden("cae/cae_pretrain_tiny_align_differs")
    weights = cae_weights(case.group("param"))
    without = {name: value for name, value in weights.items() if not name.startswith("alignment_encoder.")}
    second = run(case, without)
    np.testing.assert_allclose(second["alignment.target"], case["output/second_forward/latent_target"], atol=5e-6)
    assert np.abs(second["alignment.target"] - run(case, weights)["alignment.target"]).max() > 1e-2


def test_every_layer_is_returned(golden, cae_weights):
    case = golden("cae/cae_pretrain_tiny_proj")
    names = list(run(case, cae_weights(case.group("param"))))
    assert names == [
        *("encoder.embed", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm"),
        *("regressor.blocks.0", "latent", "decoder.embed", "decoder.blocks.0", "logits"),
        *("alignment.embed", "alignment.blocks.0", "alignment.blocks.1", "alignment.target"),
        *("loss_main", "loss_align", "loss"),
    ]
