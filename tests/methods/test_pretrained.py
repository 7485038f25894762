"""The encoder of any checkpoint of pre-training."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.methods.pretrained import load_encoder
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.mae import MaskedAutoencoder

pytestmark = pytest.mark.compat
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
NETWORKS = {
    "facebook": lambda: MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4),
    "plsc": lambda: MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4),
    "cae": lambda: ContextAutoencoder(**SIZES, decoder_embed_dim=24, decoder_num_heads=4, decoder_num_classes=8),
    "plsc_cae": lambda: ContextAutoencoder(**SIZES, decoder_embed_dim=24, decoder_num_heads=4, decoder_num_classes=8),
}


@pytest.mark.parametrize("dialect", sorted(NETWORKS))
def test_the_encoder_of_a_foreign_file(dialect, tmp_path):
    model = NETWORKS[dialect]()
    np.savez(tmp_path / "file.npz", **weights.export(model, dialect))
    encoder, report = load_encoder(str(tmp_path / "file.npz"), num_heads=4)
    assert report.dialect == dialect
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32))
    assert not encoder.training
    model.eval()
    np.testing.assert_array_equal(encoder.forward_features(images).numpy(), model.forward_features(images).numpy())


def test_what_cannot_be_loaded(tmp_path):
    path = str(tmp_path / "file.npz")
    arrays = weights.export(NETWORKS["cae"](), "cae")
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="does not tell its number of heads; give it with --num_heads"):
        load_encoder(path)
    with pytest.raises(ConfigError, match="--mask_ratio is no option of method 'cae'"):
        load_encoder(path, 4, mask_ratio=0.5)
    del arrays["encoder.norm.bias"]
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, the first norm\.bias"):
        load_encoder(path, 4)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CheckpointError, match="does not tell what network it holds"):
        load_encoder(path, 4)
