"""Trained classifiers by their own tensors: foreign files need no options beside them.

Logits are compared to the originals' recordings: rtol 1e-4, atol 2e-5 as recorded.
"""

from __future__ import annotations

import logging

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.data.classes import ClassOrder
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import CheckpointError, ConfigError, DataError
from plsc_mae.loading.class_names import head_to_keep
from plsc_mae.loading.classifier import load_classifier
from plsc_mae.models.classifier import ImageClassifier, ParallelHeads
from plsc_mae.models.mae import MaskedAutoencoder

pytestmark = pytest.mark.compat
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
MAE = {**SIZES, "positions": "learned"}
BEIT = {**SIZES, "k_bias": False, "positions": "row first"}
BARE = {**SIZES, "k_bias": False, "class_token": False}
NETWORKS = {
    "mae mean": ("facebook", MAE),
    "mae class token": ("facebook", {**MAE, "global_pool": False}),
    "mae probe": ("facebook", {**MAE, "global_pool": False, "probe": "standard"}),
    "mae probe, mean": ("facebook", {**MAE, "probe": "standard"}),
    "plsc probe, mean": ("plsc", {**MAE, "probe": "standard"}),
    "cae": ("beit", {**BEIT, "relative_positions": "per block", "layer_scale": 0.1}),
    "cae class token": ("plsc_beit", {**BEIT, "relative_positions": "shared", "global_pool": False}),
    "cae attentive": ("plsc_beit", {**BEIT, "probe": "attentive", "linear_depth": 2}),
    "cae attentive, no parameter": ("plsc_beit", {**BEIT, "probe": "attentive_no_parameter"}),
    "priv mean": ("beit", {**BARE, "positions": "row first"}),
    "priv probe": ("beit", {**BEIT, "global_pool": False, "probe": "raw"}),
    "priv probe, mean": ("beit", {**BARE, "positions": "row first", "probe": "raw"}),
    "mae-pytorch mean": ("beit", {**BARE, "positions": "sinusoid"}),
    "mae-pytorch first": ("beit", {**BARE, "positions": "sinusoid", "global_pool": False}),
}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)


@pytest.fixture
def save(tmp_path):
    """Write a network under the names of a dialect, and return the file."""

    def write(model, dialect: str, **meta) -> str:
        arrays = {name: paddle.to_tensor(array) for name, array in weights.export(model, dialect).items()}
        paddle.save({"model": arrays, **meta}, str(tmp_path / "file.pd"))
        return str(tmp_path / "file.pd")

    return write


def network(**options) -> ImageClassifier:
    """A classifier whose parameters and statistics are all different."""
    paddle.seed(0)
    model = ImageClassifier(**options)
    for name, tensor in model.state_dict().items():
        if not name.endswith("encoder.pos_embed"):
            tensor.set_value(paddle.rand(tensor.shape) if "running" in name else paddle.randn(tensor.shape) * 0.2)
    model.eval()
    return model


def logits_of(model: ImageClassifier, images: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_tensors_tell_the_network(save, images, name):
    dialect, options = NETWORKS[name]
    model = network(**options)
    trained = load_classifier(save(model, dialect), num_heads=4, input_size=(32,))
    assert trained.classes == ("0", "1", "2")
    assert not trained.network.training
    assert all(parameter.stop_gradient for parameter in trained.network.parameters())
    np.testing.assert_array_equal(logits_of(trained.network, images), logits_of(model, images))


@pytest.mark.parametrize("name", ["finetune", "linear", "attentive"])
def test_files_of_cae(golden, root, name):
    case = golden(f"cae/checkpoints/cae_{name}_expected")
    path = root / "tests/golden/cae/checkpoints" / case.meta["file"]
    found = logits_of(load_classifier(str(path), num_heads=3).network, case["input/x"])
    np.testing.assert_allclose(found, case["output/eval/logits"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("fb_finetuned_gap", "", "logits"),
        ("priv_finetune_ema", "", "logits"),
        ("priv_finetune_ema", "model_ema", "logits_ema"),
    ],
)
def test_files_of_the_maes(golden, root, name, key, expected):
    case, path = golden(f"mae/checkpoints/{name}"), root / f"tests/golden/mae/checkpoints/{name}.pth"
    trained = load_classifier(str(path), num_heads=2, model_key=key)
    found = logits_of(trained.network, case["input/images"])
    np.testing.assert_allclose(found, case[f"output/{expected}"], rtol=1e-4, atol=2e-5)
    assert trained.transform == ResizeCenterCrop((16, 16), 16)


def test_a_class_token_behind_a_norm_is_told_by_options(save, images):
    """MAE-priv's CLS models have the tensors of CAE's mean-pooled ones."""
    model = network(**BEIT, global_pool=False, fc_norm=True)
    expected = logits_of(model, images)
    told = load_classifier(save(model, "beit", args={"use_cls_token": True}), num_heads=4)
    given = load_classifier(save(model, "beit"), num_heads=4, global_pool=False)
    for trained in (told, given):
        np.testing.assert_array_equal(logits_of(trained.network, images), expected)
    averaged = load_classifier(save(model, "beit"), num_heads=4).network
    assert np.abs(logits_of(averaged, images) - expected).max() > 0.01


def test_another_image_size_resizes_positions(save):
    path = save(network(**MAE), "facebook")
    trained = load_classifier(path, num_heads=4, input_size=(48, 32))
    assert (trained.network.encoder.grid, trained.transform.size) == ((6, 4), (48, 32))
    small = load_classifier(path, num_heads=4).network.encoder.pos_embed
    assert list(small.shape) == [1, 17, 32]
    np.testing.assert_array_equal(trained.network.encoder.pos_embed[:, 0].numpy(), small[:, 0].numpy())
    with pytest.raises(ConfigError, match="input_size 33 is not a multiple of patch_size 8"):
        load_classifier(path, num_heads=4, input_size=(33,))


def test_what_is_no_classifier(save, tmp_path):
    sizes = {key: value for key, value in SIZES.items() if key != "num_classes"}
    autoencoder = MaskedAutoencoder(**sizes, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    with pytest.raises(
        CheckpointError, match="holds no classifier: it has no head; expected a checkpoint of `plsc-mae"
    ):
        load_classifier(save(autoencoder, "facebook"), num_heads=4)
    with pytest.raises(CheckpointError, match="has no tensors under 'model_ema'; it has tensors under model"):
        load_classifier(save(network(**MAE), "facebook"), num_heads=4, model_key="model_ema")
    with pytest.raises(ConfigError, match="does not store its number of heads; give it with --num_heads"):
        load_classifier(save(network(**MAE), "facebook"))
    swept = network(**MAE, probe="standard")
    swept.head = ParallelHeads(swept.head, 2)
    with pytest.raises(CheckpointError, match="holds the classifiers of --lr_sweep, one for each rate"):
        load_classifier(save(swept, "plsc_mae", phase="linprobe"))


def test_a_single_output_is_reported(save, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    assert load_classifier(save(network(**MAE | {"num_classes": 1}), "facebook"), num_heads=4).classes == ("0",)
    assert "probability is 100 %" in caplog.text


def test_names_for_a_file_without_a_head_are_refused(save):
    stored = weights.read(save(network(**MAE).encoder, "facebook"))
    assert head_to_keep(stored, 3, ClassOrder()) is None
    with pytest.raises(CheckpointError, match=r"--classes names\.txt .*no head; leave out --classes"):
        head_to_keep(stored, 3, ClassOrder(), "names.txt")


def test_names_of_classes(save, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    """Classes that the data did not have keep their numbers."""
    model, names = network(**MAE), tmp_path / "names.txt"
    assert load_classifier(save(model, "facebook", classes=["cat", "dog"]), num_heads=4).classes == ("cat", "dog", "2")
    path = save(model, "facebook", classes=["cat", "dog", "owl"])
    names.write_text("a cat, Felis catus\nein Hündchen \nowl\n\n", encoding="utf-8")
    trained = load_classifier(path, num_heads=4, classes=str(names))
    assert trained.classes == ("a cat, Felis catus", "ein Hündchen", "owl")
    names.write_text("dog\ncat\nowl\n")
    assert load_classifier(path, num_heads=4, classes=str(names)).classes == ("dog", "cat", "owl")
    assert "in a different order" in caplog.text
    names.write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"names\.txt has 2 names; expected 3"):
        load_classifier(path, num_heads=4, classes=str(names))
    names.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="UTF-16 text"):
        load_classifier(path, num_heads=4, classes=str(names))
    with pytest.raises(DataError, match=r"cannot read the class names of .*none\.txt: No such file"):
        load_classifier(path, num_heads=4, classes=str(tmp_path / "none.txt"))
