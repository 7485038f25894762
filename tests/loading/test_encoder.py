"""The encoder of any checkpoint: of pre-training, of a classifier, of a probe."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.data.transforms import IMAGENET_MEAN, INCEPTION_MEAN
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.loading.training_config import training_config
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
    encoder = load_encoder(str(tmp_path / "file.npz"), num_heads=4).network
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32))
    assert not encoder.training
    model.eval()
    np.testing.assert_array_equal(encoder.forward_features(images).numpy(), model.forward_features(images).numpy())


def test_what_cannot_be_loaded(tmp_path):
    path = str(tmp_path / "file.npz")
    arrays = weights.export(NETWORKS["cae"](), "cae")
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="does not store its number of heads; give it with --num_heads"):
        load_encoder(path)
    with pytest.raises(ConfigError, match="--mask_ratio is no option of method 'cae'"):
        training_config(weights.read(path), {"num_heads": 4}, mask_ratio=0.5)
    del arrays["encoder.norm.bias"]
    np.savez(path, **arrays)
    with pytest.raises(
        CheckpointError, match=r"incomplete encoder: .* 1 is missing from the file \(norm\.bias\); use a complete"
    ):
        load_encoder(path, num_heads=4)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CheckpointError, match="holds no known network of pre-training"):
        load_encoder(path, num_heads=4)


def test_an_encoder_without_its_decoder(root):
    path = str(root / "tests/golden/mae/checkpoints/fb_released_encoder.pth")
    encoder = load_encoder(path, num_heads=2).network
    np.testing.assert_array_equal(encoder.norm.weight.numpy(), weights.read(path).model["norm.weight"])
    with pytest.raises(CheckpointError, match="holds an encoder only; expected the decoder too"):
        training_config(weights.read(path), {"num_heads": 2, "decoder_num_heads": 2})


PRIV = {"k_bias": False, "positions": "row first", "fc_norm": True}
CLASSIFIERS = {
    "facebook": {"positions": "learned"},
    "facebook, token": {"positions": "learned", "global_pool": False},
    "facebook, probe": {"positions": "learned", "global_pool": False, "probe": "standard"},
    "beit": {"k_bias": False, "positions": "row first", "relative_positions": "per block", "layer_scale": 0.1},
    "beit, shared": {"k_bias": False, "positions": "none", "relative_positions": "shared"},
    "beit, attentive": {"k_bias": False, "positions": "row first", "probe": "attentive", "layer_scale": 0.1},
    "beit, priv": PRIV,
    "beit, priv, no token": {**PRIV, "class_token": False},
    "beit, priv, probe": {"k_bias": False, "positions": "row first", "probe": "raw"},
    "plsc": {"positions": "learned", "probe": "standard"},
    "plsc_beit": {"k_bias": False, "positions": "row first", "relative_positions": "per block"},
    "plsc_mae": {"positions": "learned", "mlp_ratio": 2.0},
}


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_the_encoder_of_a_classifier(name, tmp_path):
    paddle.seed(0)
    options, file = CLASSIFIERS[name], str(tmp_path / "file.npz")
    model = ImageClassifier(**SIZES, num_classes=3, **options)
    for _, tensor in model.named_parameters():
        tensor.set_value(tensor + 0.1 * paddle.randn(tensor.shape))  # so that no table is as computed by chance
    np.savez(file, **weights.export(model, name.partition(",")[0]))
    encoder = load_encoder(file, num_heads=None if "relative_positions" in options else 4).network
    assert encoder.positions == options["positions"]
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32))
    model.eval()
    np.testing.assert_array_equal(encoder.forward_features(images).numpy(), model.forward_features(images).numpy())


def test_a_classifier_of_this_suite_has_its_options(tmp_path):
    """Heads, an oblong image that no shape tells, and the statistics come from the options."""
    model = ImageClassifier(**{**SIZES, "img_size": (32, 16)}, num_classes=3, positions="sinusoid", class_token=False)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    options = {"num_heads": 4, "input_size": [32, 16], "imagenet_inception_mean_and_std": True}
    paddle.save({"model": state, "args": options, "method": "mae_pytorch"}, str(tmp_path / "checkpoint-3.pd"))
    network, normalize, _ = load_encoder(str(tmp_path / "checkpoint-3.pd"))
    assert (network.img_size, network.blocks[0].attn.num_heads) == ((32, 16), 4)
    np.testing.assert_allclose(normalize.mean.numpy().flatten(), INCEPTION_MEAN)
    oblong = ImageClassifier(**{**SIZES, "img_size": (32, 8)}, num_classes=3, positions="column first")  # 4 patches
    state |= {name: tensor.numpy() for name, tensor in oblong.state_dict().items()}
    paddle.save({"model": state, "args": {"input_size": [32, 8]}}, str(tmp_path / "checkpoint-4.pd"))
    network, _, _ = load_encoder(str(tmp_path / "checkpoint-4.pd"), num_heads=4)
    assert (network.grid, network.positions) == ((4, 1), "column first")


def test_files_without_options(tmp_path):
    model = ImageClassifier(**SIZES, num_classes=3, positions="sinusoid", class_token=False)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.savez(tmp_path / "file.npz", **state)
    network, normalize, _ = load_encoder(str(tmp_path / "file.npz"), num_heads=2)
    assert (network.img_size, network.blocks[0].attn.num_heads) == ((224, 224), 2)
    np.testing.assert_allclose(normalize.mean.numpy().flatten(), IMAGENET_MEAN, rtol=1e-6)
    np.savez(tmp_path / "file.npz", **state, **{"encoder.pos_embed": np.zeros((1, 8, 32))})
    with pytest.raises(CheckpointError, match="does not store its image size"):
        load_encoder(str(tmp_path / "file.npz"), num_heads=2)


def test_heads_of_a_named_network_of_this_width(tmp_path):
    """Files of others name their network; 384 wide ones have 12 heads in CAE and 6 elsewhere."""
    model = ImageClassifier(**{**SIZES, "embed_dim": 384, "depth": 1, "num_heads": 12}, num_classes=3, k_bias=False)
    state = {name: paddle.to_tensor(x) for name, x in weights.export(model, "beit").items()}
    for name, heads in (("cae_small_patch16_224", 12), ("vit_base_patch16_224", 6), ("", 6)):
        paddle.save({"model": state, "args": {"model": name}}, str(tmp_path / "file.pd"))
        assert load_encoder(str(tmp_path / "file.pd")).network.blocks[0].attn.num_heads == heads


def test_a_run_of_another_width_keeps_the_heads_of_its_model(tmp_path):
    """Its options state the heads only if they differ from the model's; the name in a file of others is not enough."""
    model = ImageClassifier(**{**SIZES, "embed_dim": 48, "num_heads": 3}, num_classes=3)
    content = {"model": model.state_dict(), "args": {"model": "vit_tiny_patch16", "num_heads": None}}
    paddle.save({**content, "phase": "finetune", "method": "mae"}, str(tmp_path / "checkpoint-3.pd"))
    assert load_encoder(str(tmp_path / "checkpoint-3.pd")).network.blocks[0].attn.num_heads == 3
    paddle.save(content, str(tmp_path / "file.pd"))
    with pytest.raises(ConfigError, match="does not store its number of heads"):
        load_encoder(str(tmp_path / "file.pd"))


@pytest.mark.parametrize("name", ["priv_pretrain_cls", "priv_pretrain_gap", "mp_pretrain"])
def test_pretraining_of_mae_priv_and_mae_pytorch(root, name):
    path = root / f"tests/golden/mae/checkpoints/{name}.pth"
    size = {"input_size": (16,)} if name == "mp_pretrain" else {}
    encoder = load_encoder(str(path), num_heads=2, **size).network
    assert encoder.positions == ("sinusoid" if name == "mp_pretrain" else "row first")
    assert (encoder.cls_token is not None) == (name == "priv_pretrain_cls")
    assert (encoder.grid, len(encoder.blocks)) == ((4, 4), 2)
    stored = weights.read(path).model
    np.testing.assert_array_equal(encoder.blocks[1].attn.v_bias.numpy(), stored["encoder.blocks.1.attn.v_bias"])
    np.testing.assert_array_equal(encoder.norm.bias.numpy(), stored["encoder.norm.bias"])
    with pytest.raises(ConfigError, match="does not store its number of heads; give it with --num_heads"):
        load_encoder(str(path))


def test_another_image_size(tmp_path):
    model = ImageClassifier(**SIZES, num_classes=3, positions="learned")
    np.savez(tmp_path / "file.npz", **weights.export(model, "facebook"))
    encoder, _, origin = load_encoder(str(tmp_path / "file.npz"), num_heads=4, input_size=(48, 32))
    table = resize_pos_embed(model.encoder.pos_embed.numpy(), (4, 4), (6, 4))
    np.testing.assert_array_equal(encoder.pos_embed.numpy(), table)
    assert f"{len(model.encoder.state_dict())} tensors of the encoder (facebook)" in origin
