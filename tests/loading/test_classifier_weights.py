"""Classifiers that start from a checkpoint, and classifiers that are loaded whole.

Logits are compared to the originals' own after loading by their own scripts: rtol 1e-4, atol 2e-5 as recorded.
"""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.errors import CheckpointError
from plsc_mae.loading.classifier_weights import load_classifier_weights, load_into_classifier
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.pos_embed import resize_pos_embed
from plsc_mae.models.rel_pos_bias import resize_relative_positions

pytestmark = [pytest.mark.compat, pytest.mark.once]
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}
CAE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
CAE |= {"k_bias": False, "layer_scale": 0.1, "positions": "row first"}
CLASSIFIERS = {
    "finetune": {"relative_positions": "per block"},
    # The original loses the final norm here, because it renames it to one that the network lacks; ours is loaded.
    "finetune_use_cls": {"global_pool": False},
    "linear": {"global_pool": False, "probe": "standard"},
    "attentive": {"probe": "attentive", "relative_positions": "per block"},
}
# Networks of the recorded files of the MAEs, which are 8 wide.
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 10}
PRIV = {**SMALL, "k_bias": False, "positions": "row first", "fc_norm": True}
PRIV_GAP, PRIV_CLS = {**PRIV, "class_token": False}, {**PRIV, "global_pool": False}
MP = {**SMALL, "k_bias": False, "positions": "sinusoid", "class_token": False}
LEARNED = {"num_classes": 3, "positions": "learned"}


@pytest.fixture
def mae_files(root):
    return root / "tests/golden/mae/checkpoints"


@pytest.fixture
def save(tmp_path):
    """Write arrays, or a network under the names of a dialect, to a file."""

    def write(content, dialect: str = ""):
        arrays = weights.export(content, dialect) if dialect else content
        np.savez(tmp_path / "file.npz", **arrays)
        return str(tmp_path / "file.npz")

    return write


def read(source, key="", prefix="") -> weights.Checkpoint:
    return source if isinstance(source, weights.Checkpoint) else weights.read_network(source, key, prefix)


def start(model, source, *, key="", prefix="", **options) -> weights.LoadReport:
    return load_into_classifier(model, read(source, key, prefix), **options)


def load_trained(model, source, *, key="") -> weights.LoadReport:
    return load_classifier_weights(model, read(source, key))


def autoencoder(**options) -> MaskedAutoencoder:
    return MaskedAutoencoder(**{**SIZES, **DECODER, **options})


def classifier(**options) -> ImageClassifier:
    return ImageClassifier(**{**SIZES, **LEARNED, **options})


def logits_of(model: ImageClassifier, images: np.ndarray) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_a_classifier_starts_as_the_originals(golden, root, name):
    case = golden(f"cae/checkpoints/load_{name}_expected")
    model = ImageClassifier(**CAE, **CLASSIFIERS[name])
    path = root / "tests/golden/cae/checkpoints" / case.meta["file"]
    report = start(model, path, norm_into_fc_norm=True)
    found = set(weights.export(model, "beit", {key: np.zeros(1) for key in report.matched}))
    ours = {"norm.weight", "norm.bias"} if name == "finetune_use_cls" else set()
    assert found == set(case.meta["loaded_target_from_source"]) | ours

    rest = case.group("param_not_from_checkpoint")
    if name == "linear":
        rest = {key.replace("head.", "head.1."): value for key, value in rest.items()}
    weights.load(model, {key: value for key, value in rest.items() if key not in ours}, dialect="beit")
    if ours:  # what the original was left with
        model.encoder.norm.weight.set_value(rest["norm.weight"])
        model.encoder.norm.bias.set_value(rest["norm.bias"])
    np.testing.assert_allclose(logits_of(model, case["input/x"]), case["output/eval/logits"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("priv_pretrain_cls", PRIV_CLS), ("priv_pretrain_gap", PRIV_GAP), ("mp_pretrain", MP)]
)
def test_a_classifier_starts_from_mae_priv_and_mae_pytorch(mae_files, name, options):
    """Everything of the encoder but its norm, for the one behind the pooling is fresh in the originals."""
    model = ImageClassifier(**options)
    stored = weights.read(mae_files / f"{name}.pth")
    report = start(model, stored, norm_into_fc_norm=False)
    assert report.missing == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert {name for name in report.unexpected if name.startswith("encoder.")} == {
        "encoder.norm.weight",
        "encoder.norm.bias",
    }
    for key, value in weights.export(model, "mae_priv").items():
        if key.startswith("encoder."):
            np.testing.assert_array_equal(value, stored.model[key], err_msg=key)
    assert (model.fc_norm.weight.numpy() == 1).all()


def test_the_head_of_a_classifier_is_kept_where_it_fits(golden, mae_files):
    case, path = golden("mae/checkpoints/fb_finetuned_gap"), mae_files / "fb_finetuned_gap.pth"
    model = ImageClassifier(**SMALL, positions="learned")
    report = start(model, path, norm_into_fc_norm=False)
    assert (report.missing, report.unexpected) == ([], [])
    expected = case["output/logits"]
    np.testing.assert_allclose(logits_of(model, case["input/images"]), expected, rtol=1e-4, atol=2e-5)

    other = ImageClassifier(**{**SMALL, "num_classes": 4}, positions="learned")
    head = other.head.weight.numpy()
    report = start(other, path, norm_into_fc_norm=False)
    assert report.missing == ["head.weight", "head.bias"]
    np.testing.assert_array_equal(other.head.weight.numpy(), head)
    np.testing.assert_array_equal(other.fc_norm.bias.numpy(), weights.read(path).model["fc_norm.bias"])


def test_a_classifier_of_this_suite_is_a_start(save):
    """Also after its head, by which the dialect is recognized, is left out."""
    model, other = classifier(), classifier(num_classes=5)
    report = start(other, save(model, "plsc_mae"), norm_into_fc_norm=False)
    assert (report.dialect, report.missing) == ("plsc_mae", ["head.weight", "head.bias"])
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with paddle.no_grad():
        ours, theirs = (m.pooled(paddle.to_tensor(images)).numpy() for m in (other, model))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("probe", ["none", "standard"])
def test_learned_positions_are_resized(save, probe):
    """A probe's are frozen, which does not make them a computed table."""
    model = autoencoder()
    larger = classifier(img_size=48, probe=probe)
    report = start(larger, save(model, "facebook"), norm_into_fc_norm=False)
    assert report.resized == ["encoder.pos_embed"]
    table = resize_pos_embed(model.encoder.pos_embed.numpy(), (4, 4), (6, 6))
    np.testing.assert_array_equal(larger.encoder.pos_embed.numpy(), table)
    assert (larger.fc_norm.weight.numpy() == 1).all()


def test_relative_positions_are_resized_and_shared_ones_copied(save):
    options = {"k_bias": False, "positions": "row first"}
    model = classifier(**options, relative_positions="shared")
    table = model.encoder.rel_pos_bias.relative_position_bias_table
    table.set_value(paddle.randn(table.shape))
    path = save(model, "beit")
    same, larger = (classifier(**options, img_size=s, relative_positions="per block") for s in (32, 48))
    assert not start(same, path, norm_into_fc_norm=True).resized
    report = start(larger, path, norm_into_fc_norm=True)
    names = [f"encoder.blocks.{i}.attn.rel_pos_bias.relative_position_bias_table" for i in (0, 1)]
    assert report.resized == ["encoder.pos_embed", *names]
    for i in (0, 1):
        tables = (m.encoder.blocks[i].attn.rel_pos_bias.relative_position_bias_table.numpy() for m in (same, larger))
        for found, side in zip(tables, (4, 6), strict=True):
            expected = resize_relative_positions(table.numpy(), (4, 4), (side, side))
            np.testing.assert_array_equal(found, expected)


def test_parts_and_prefixes_of_files(golden, mae_files, save):
    case, path = golden("mae/checkpoints/priv_finetune_ema"), mae_files / "priv_finetune_ema.pth"
    for key, expected in (("", "logits"), ("model|module", "logits"), ("none|model_ema|model", "logits_ema")):
        model = ImageClassifier(**PRIV_GAP)
        report = start(model, path, norm_into_fc_norm=False, key=key)
        assert (report.missing, report.unexpected) == ([], [])
        found = logits_of(model, case["input/images"])
        np.testing.assert_allclose(found, case[f"output/{expected}"], rtol=1e-4, atol=2e-5)
        other = ImageClassifier(**PRIV_GAP)
        load_trained(other, path, key=key)
        np.testing.assert_array_equal(logits_of(other, case["input/images"]), found)
    with pytest.raises(CheckpointError, match=r"no tensors under 'ema'; it has tensors under .*model, .*model_ema"):
        start(ImageClassifier(**PRIV_GAP), path, norm_into_fc_norm=False, key="ema")

    model, other = classifier(), classifier()
    arrays = {f"backbone.{name}": value for name, value in weights.export(model, "facebook").items()}
    flat = save({**arrays, "neck.weight": np.zeros(3)})
    report = start(other, flat, norm_into_fc_norm=False, key="model|module", prefix="backbone.")
    assert (report.missing, report.unexpected) == ([], [])
    with pytest.raises(CheckpointError, match=r"starts with 'trunk\.'; the first name is backbone\."):
        start(other, flat, norm_into_fc_norm=False, prefix="trunk.")


MATCHED = "28 tensors matched (facebook)"
REFUSED = {
    "wider": (
        {"embed_dim": 64},
        "(28 tensors of other shapes, 0 tensors matched (facebook), 4 missing",
    ),
    "deeper": (
        {"depth": 3},
        f"of 2 blocks where the network has 3: {MATCHED}, 12 are missing from the file (encoder.blocks.2.",
    ),
    "shallower": (
        {"depth": 1},
        "1: 16 tensors matched (facebook), 12 have no place in the network (blocks.1.attn.proj.bias, ",
    ),
    "other biases": (
        {"k_bias": False},
        "holds another encoder: 26 tensors matched (facebook), 4 are missing from the file (enc",
    ),
    "scaled": (
        {"layer_scale": 0.1},
        f"another encoder: {MATCHED}, 4 are missing from the file (encoder.blocks.0.gamma_1, ",
    ),
    "no class token": (
        {"class_token": False, "positions": "none"},
        "2 have no place in the network (cls_token, pos_embed)",
    ),
    "no such table": ({"positions": "sinusoid"}, "has a position table, but the network has MAE-pytorch's"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_another_encoder_is_refused(save, name):
    options, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=re.escape(message)):
        start(classifier(**options), save(autoencoder(), "facebook"), norm_into_fc_norm=False)


def test_what_the_network_cannot_take_is_refused(save):
    """Trained layer scales and relative positions would be lost, and the encoder another one."""
    base = {"k_bias": False, "positions": "row first"}
    for options, name in (
        ({"layer_scale": 0.1}, "blocks.0.gamma_1"),
        ({"relative_positions": "per block"}, "blocks.0.attn.relative_position_bias_table"),
        ({"relative_positions": "shared"}, "rel_pos_bias.relative_position_bias_table"),
    ):
        path = save(classifier(**base, **options), "beit")
        with pytest.raises(
            CheckpointError, match=rf"another encoder: .* (has|have) no place in the network \({re.escape(name)}"
        ):
            start(classifier(**base), path, norm_into_fc_norm=True)
    path = save(classifier(**base, relative_positions="per block"), "beit")
    with pytest.raises(CheckpointError, match=r"1 is missing from the file \(encoder\.rel_pos_bias\."):
        start(classifier(**base, relative_positions="shared"), path, norm_into_fc_norm=True)


def test_incomplete_and_foreign_files_are_refused(save, mae_files):
    arrays = weights.export(autoencoder(), "facebook")
    del arrays["blocks.1.norm2.bias"]
    with pytest.raises(
        CheckpointError, match=r"27 tensors matched \(facebook\), 1 is missing from the file \(encoder\.blocks\.1"
    ):
        start(classifier(), save(arrays), norm_into_fc_norm=False)
    with pytest.raises(CheckpointError, match="no known dialect has these names"):
        start(classifier(), save({"weight": np.zeros(3)}), norm_into_fc_norm=False)
    # MAE-priv's GAP classifiers and MAE-pytorch's differ in nothing but their positions.
    with pytest.raises(CheckpointError, match=r"mp_pretrain\.pth has no position table.*--method mae_pytorch"):
        start(ImageClassifier(**PRIV_GAP), mae_files / "mp_pretrain.pth", norm_into_fc_norm=False)
    with pytest.raises(CheckpointError, match=r"priv_pretrain_gap\.pth has a position table, but the network has"):
        start(ImageClassifier(**MP), mae_files / "priv_pretrain_gap.pth", norm_into_fc_norm=False)
    for name, options in (("cls", PRIV_GAP), ("gap", PRIV_CLS)):  # the original only prints a warning, or fails
        with pytest.raises(CheckpointError, match=r"\(encoder\.cls_token\)"):
            start(ImageClassifier(**options), mae_files / f"priv_pretrain_{name}.pth", norm_into_fc_norm=False)


@pytest.mark.parametrize("probe", ["standard", "raw", "attentive", "attentive_no_parameter"])
@pytest.mark.parametrize("dialect", ["facebook", "plsc", "plsc_mae"])
def test_a_probe_is_no_start(save, dialect, probe):
    path = save(classifier(probe=probe), dialect)
    with pytest.raises(
        CheckpointError, match=r"holds a probe \(.*\) with its encoder; expected the checkpoint of pre-"
    ):
        start(classifier(), path, norm_into_fc_norm=False)


@pytest.mark.parametrize("name", ["finetune", "linear", "attentive"])
def test_whole_classifiers_of_cae(golden, root, name):
    case = golden(f"cae/checkpoints/cae_{name}_expected")
    model = ImageClassifier(**CAE, **CLASSIFIERS[name])
    report = load_trained(model, root / "tests/golden/cae/checkpoints" / case.meta["file"])
    assert not report.missing
    np.testing.assert_allclose(logits_of(model, case["input/x"]), case["output/eval/logits"], rtol=1e-4, atol=2e-5)


def test_whole_classifiers_of_facebookresearch_mae(golden, mae_files, save):
    case = golden("mae/checkpoints/fb_finetuned_gap")
    model = ImageClassifier(**SMALL, positions="learned")
    load_trained(model, mae_files / "fb_finetuned_gap.pth")
    found = logits_of(model, case["input/images"])
    np.testing.assert_allclose(found, case["output/logits"], rtol=1e-4, atol=2e-5)

    case, trunk = golden("mae/fb_linprobe_tiny"), golden("mae/fb_vit_tiny_cls")
    params = {key: value for key, value in trunk.group("param").items() if not key.startswith("head.")}
    params |= {f"head.1.{kind}": case[f"output/final_head.1.{kind}"] for kind in ("weight", "bias")}
    params |= {f"head.0.running_{kind}": case[f"output/running_{kind}2"] for kind in ("mean", "var")}
    params["head.0.num_batches_tracked"] = case["output/num_batches_tracked"]
    sizes = {key: trunk.meta["ctor"][key] for key in ("embed_dim", "depth", "num_heads", "img_size", "patch_size")}
    probe = ImageClassifier(**sizes, num_classes=10, global_pool=False, probe="standard", positions="learned")
    load_trained(probe, save(params))
    found = logits_of(probe, case["input/images0"])
    np.testing.assert_allclose(found, case["output/eval_logits"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("probe", ["none", "standard", "raw", "attentive", "attentive_no_parameter"])
@pytest.mark.parametrize("dialect", ["plsc", "plsc_beit", "plsc_mae"])
def test_whole_classifiers_of_every_kind(tmp_path, dialect, probe):
    """As Paddle saves them; a PLSC probe has running statistics under Paddle's names."""
    options = {"probe": probe, "k_bias": dialect != "plsc_beit"}
    model, other = classifier(**options), classifier(**options)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.set_value(paddle.rand(tensor.shape) + 1)
    arrays = weights.export(model, dialect)
    if dialect != "plsc_mae":
        assert not any("running" in name for name in arrays)
    if dialect == "plsc" and probe == "standard":  # Paddle 2.4 wrote what it does not train
        arrays |= {"head.0.weight": np.ones(32, np.float32), "head.0.bias": np.zeros(32, np.float32)}
    tensors = {name: paddle.to_tensor(value) for name, value in arrays.items()}
    paddle.save({"model": tensors, "epoch": 9}, str(tmp_path / "checkpoint-9.pd"))
    report = load_trained(other, tmp_path / "checkpoint-9.pd")
    assert (report.dialect, report.missing) == (dialect, [])
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


def test_a_classifier_is_loaded_whole_or_not_at_all(save, mae_files):
    model = classifier()
    with pytest.raises(CheckpointError, match=r"another classifier: .* missing from the file \(head\.weight, "):
        load_trained(model, save(classifier(probe="standard"), "facebook"))
    with pytest.raises(CheckpointError, match=r"another classifier: .* 12 have no place in the network \(blocks\.1\."):
        load_trained(classifier(depth=1), save(classifier(), "facebook"))
    with pytest.raises(CheckpointError, match=r"'head\.weight' has shape \[32, 5\] in our layout"):
        load_trained(model, save(classifier(num_classes=5), "facebook"))
    with pytest.raises(CheckpointError, match="holds another classifier: 28 tensors matched"):
        load_trained(model, save(autoencoder(), "facebook"))
    arrays = weights.export(classifier(probe="standard"), "plsc")
    with pytest.raises(CheckpointError, match=r"1 has no place in the network \(head\.0\.weight\)"):
        load_trained(classifier(probe="standard"), save({**arrays, "head.0.weight": np.full(32, 2.0)}))
    with pytest.raises(CheckpointError, match="has a position table, but the network has MAE-pytorch's"):
        load_trained(ImageClassifier(**MP), mae_files / "priv_finetune_ema.pth")


def test_cae_starts_its_classifiers_norm_from_the_encoders(save):
    """Atten4Vis/CAE renames it; the MAEs start afresh, and a batch norm takes nothing."""
    model = ContextAutoencoder(**SIZES, decoder_embed_dim=24, decoder_num_heads=4, decoder_num_classes=8)
    model.encoder.norm.bias.set_value(paddle.randn([32]))
    path, options = save(model, "cae"), {"k_bias": False, "positions": "row first", "layer_scale": 0.1}
    for into, expected in ((True, model.encoder.norm.bias.numpy()), (False, np.zeros(32))):
        started = classifier(**options)
        report = start(started, path, norm_into_fc_norm=into)
        assert ("fc_norm.bias" in report.matched) == into
        np.testing.assert_array_equal(started.fc_norm.bias.numpy(), expected)
    report = start(classifier(**options, probe="raw"), path, norm_into_fc_norm=True)
    assert "fc_norm.running_mean" in report.missing
