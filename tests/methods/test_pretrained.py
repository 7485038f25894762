"""The encoder of any checkpoint of pre-training."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.methods.frozen import load_frozen
from plsc_mae.methods.pretrained import load_into_classifier, training_config
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.pos_embed import resize_pos_embed

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
    encoder = load_frozen(str(tmp_path / "file.npz"), num_heads=4).network
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32))
    assert not encoder.training
    model.eval()
    np.testing.assert_array_equal(encoder.forward_features(images).numpy(), model.forward_features(images).numpy())


def test_what_cannot_be_loaded(tmp_path):
    path = str(tmp_path / "file.npz")
    arrays = weights.export(NETWORKS["cae"](), "cae")
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="does not tell its number of heads; give it with --num_heads"):
        load_frozen(path)
    with pytest.raises(ConfigError, match="--mask_ratio is no option of method 'cae'"):
        training_config(weights.read(path), {"num_heads": 4}, mask_ratio=0.5)
    del arrays["encoder.norm.bias"]
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, the first norm\.bias"):
        load_frozen(path, num_heads=4)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CheckpointError, match="does not tell what network it holds"):
        load_frozen(path, num_heads=4)


def test_an_encoder_without_its_decoder(root):
    path = str(root / "tests/golden/mae/checkpoints/fb_released_encoder.pth")
    encoder = load_frozen(path, num_heads=2).network
    np.testing.assert_array_equal(encoder.norm.weight.numpy(), weights.read(path).model["norm.weight"])
    with pytest.raises(CheckpointError, match="holds an encoder only; redrawing needs the decoder too"):
        training_config(weights.read(path), {"num_heads": 2, "decoder_num_heads": 2})


CLASSIFIERS = {
    "finetune": {"relative_positions": "per block"},
    # The original loses the final norm here, because it renames it to one that the network lacks; ours is loaded.
    "finetune_use_cls": {"global_pool": False},
    "linear": {"global_pool": False, "probe": "standard"},
    "attentive": {"probe": "attentive", "relative_positions": "per block"},
}


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_a_classifier_starts_as_the_originals(golden, root, name):
    """The pre-training file of Atten4Vis/CAE gives its own scripts' logits: rtol 1e-4, atol 2e-5 as recorded."""
    case = golden(f"cae/checkpoints/load_{name}_expected")
    model = ImageClassifier(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7},
        **{"k_bias": False, "layer_scale": 0.1, "positions": "row first"},
        **CLASSIFIERS[name],
    )
    path = root / "tests/golden/cae/checkpoints" / case.meta["file"]
    report = load_into_classifier(model, str(path), norm_into_fc_norm=True)
    expected = {key for key in case.meta["loaded_target_from_source"] if not key.startswith("fc_norm.")}
    found = set(weights.export(model, "beit", {f"encoder.{key}": np.zeros(1) for key in report.matched}))
    assert found - {"norm.weight", "norm.bias"} == expected - {"norm.weight", "norm.bias"}

    rest = {key: case[f"param_not_from_checkpoint/{key}"] for key in case.group("param_not_from_checkpoint")}
    if name == "linear":
        rest = {key.replace("head.", "head.1."): value for key, value in rest.items()}
    kept = {"norm.weight", "norm.bias"} if name == "finetune_use_cls" else set()
    weights.load(model, {key: value for key, value in rest.items() if key not in kept}, dialect="beit")
    if kept:  # what the original was left with
        model.encoder.norm.weight.set_value(rest["norm.weight"])
        model.encoder.norm.bias.set_value(rest["norm.bias"])
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(case["input/x"])).numpy()
    np.testing.assert_allclose(logits, case["output/eval/logits"], rtol=1e-4, atol=2e-5)


def test_learned_positions_are_resized(tmp_path):
    model = MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    np.savez(tmp_path / "file.npz", **weights.export(model, "facebook"))
    larger = ImageClassifier(**{**SIZES, "img_size": 48}, num_classes=3, positions="learned")
    report = load_into_classifier(larger, str(tmp_path / "file.npz"), norm_into_fc_norm=False)
    assert report.resized == ["pos_embed"]
    table = resize_pos_embed(model.encoder.pos_embed.numpy(), (4, 4), (6, 6))
    np.testing.assert_array_equal(larger.encoder.pos_embed.numpy(), table)
    assert (larger.fc_norm.weight.numpy() == 1).all()

    wider = ImageClassifier(**{**SIZES, "embed_dim": 64}, num_classes=3, positions="learned")
    with pytest.raises(CheckpointError, match="it is another model or was made with other sizes"):
        load_into_classifier(wider, str(tmp_path / "file.npz"), norm_into_fc_norm=False)
