"""Values that are not finite are refused wherever weights are read for use."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae import weights
from plsc_mae.errors import CheckpointError
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.weights.finite import count_not_finite, require_finite

pytestmark = pytest.mark.compat  # NumPy 1 and 2 compare float16 with numbers differently
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
BAD = {
    "NaN": np.array([1, np.nan], np.float32),
    "minus infinity": np.array([-np.inf, 1], np.float32),
    "float16": np.array([np.inf, 1], np.float16),  # as a cast of 70,000 gives
    "beyond float32": np.array([1e39, 0], np.float64),
    "complex": np.array([1, complex(0, np.nan)], np.complex64),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_is_counted_and_named(kind):
    assert count_not_finite(BAD[kind]) == 1
    tensors = {"good": np.ones(3, np.float32), "bad": BAD[kind]}
    with pytest.raises(CheckpointError, match=r"FILE has .*: 1 in 1 of 2 tensors \(bad\); .*an earlier checkpoint"):
        require_finite(tensors, "FILE")
    with pytest.raises(CheckpointError, match=r": 1 in 1 of 1 tensor \(bad\)"):
        require_finite({"bad": BAD[kind]}, "FILE")


def test_finite_values_pass():
    largest = np.finfo(np.float32).max
    tensors = {"a": np.array([largest, -largest]), "b": np.arange(3), "c": np.empty(0), "d": np.array(True)}
    require_finite(tensors, "FILE")
    assert count_not_finite(np.array([largest, -largest])) == 0


def test_only_values_that_are_loaded_count(tmp_path):
    """NaN in the decoder does not concern the encoder; a network is left as it was when its file is refused."""
    model = MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    arrays = weights.export(model, "facebook")
    arrays["decoder_embed.bias"][3] = np.nan
    np.savez(tmp_path / "file.npz", **arrays)
    weights.load(model.encoder, tmp_path / "file.npz", prefix="encoder.")
    before = model.encoder.cls_token.numpy()
    with pytest.raises(CheckpointError, match=r"file\.npz has .*: 1 in 1 of .*decoder\.embed\.bias"):
        weights.load(model, tmp_path / "file.npz")
    np.testing.assert_array_equal(model.encoder.cls_token.numpy(), before)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.bool_, np.complex64])
def test_weights_of_no_floating_point_type_are_refused(tmp_path, kind):
    """Quantized weights without their scales and complex ones would load as other values."""
    model = MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    arrays = weights.export(model, "facebook")
    arrays["blocks.1.mlp.fc1.weight"] = arrays["blocks.1.mlp.fc1.weight"].astype(kind)
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(
        CheckpointError,
        match=rf"file\.npz has .*\(1, the first .*blocks\.1\.mlp\.fc1\.weight of type {np.dtype(kind).name}",
    ):
        weights.load(model, tmp_path / "file.npz")
