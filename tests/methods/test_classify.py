"""Classification: what options make of the network, its start, its groups, its batches and its scores."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.data.decode import PilImage
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transfer import device_batch
from plsc_mae.errors import ConfigError
from plsc_mae.loading.classifier_weights import start_from_pretraining
from plsc_mae.methods.base import PREDICTION
from plsc_mae.methods.classify import (
    MIX_SEED,
    ClassifyTask,
    build_classifier,
    build_normalize,
    train_transform,
    validation_transform,
)
from plsc_mae.methods.label_kinds import classification_scores
from plsc_mae.train.scaling import peak_lr

pytestmark = pytest.mark.compat

SIZES = {"input_size": (16,), "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}


def config(phase, method, **options):
    return dataclasses.replace(phase[method](), **{**SIZES, **options})


def task(phase, method, **options) -> ClassifyTask:
    settings = config(phase, method, **options)
    return ClassifyTask(build_classifier(settings, 3), build_normalize(settings), settings, 3)


def test_groups_of_fine_tuning_follow_the_layers():
    """Depth 2: embeddings, two blocks, the rest; head and final norm at the full rate (Atten4Vis/CAE)."""
    cae = task(FINETUNE, "cae", layer_decay=0.5, weight_decay=0.1)
    found = {name: (g.lr_scale, g.weight_decay) for g in cae.param_groups(0.1) for name in g.names}
    assert found["encoder.cls_token"] == (0.125, 0.0)
    assert found["encoder.patch_embed.proj.weight"] == (0.125, 0.1)
    assert found["encoder.blocks.0.attn.qkv.weight"] == (0.25, 0.1)
    assert found["encoder.blocks.1.attn.q_bias"] == (0.5, 0.0)
    assert found["encoder.blocks.1.attn.rel_pos_bias.relative_position_bias_table"] == (0.5, 0.1)
    assert found["fc_norm.weight"] == (1.0, 0.0)
    assert found["head.weight"] == (1.0, 0.1)
    assert set(found) == {name for name, p in cae.model.named_parameters() if not p.stop_gradient}

    undecayed = task(FINETUNE, "cae", disable_weight_decay_on_rel_pos_bias=True)
    found = {name: g.weight_decay for g in undecayed.param_groups(0.1) for name in g.names}
    assert {found[name] for name in found if "rel_pos_bias" in name} == {0.0}
    assert found["head.weight"] == 0.1


def test_a_probe_trains_its_head_alone():
    for method in LINPROBE:
        names = [name for group in task(LINPROBE, method).param_groups(0.0) for name in group.names]
        assert names in (["head.1.bias", "head.1.weight"], ["head.bias", "head.weight"]), method
    probe = task(FINETUNE, "cae", enable_linear_eval=True, linear_type="attentive", global_pool=False)
    names = {name.split(".")[0] for group in probe.param_groups(0.0) for name in group.names}
    assert names == {"head", "query_token", "attentive_blocks"}


def test_schedules_and_peaks():
    mae, cae = config(FINETUNE, "mae", epochs=10, lr=1.0, min_lr=0.0), config(FINETUNE, "cae", epochs=10, lr=1.0)
    by_epochs = task(FINETUNE, "mae").schedule(mae, 1.0, 4)
    assert by_epochs(2.5, 10).lr == pytest.approx(0.5)  # of 5 epochs of warm-up
    by_updates = task(FINETUNE, "cae").schedule(cae, 1.0, 4)
    assert by_updates(2.5, 10).lr == pytest.approx(10 / 19)  # of 20 updates, of which the last has the peak
    assert by_updates(0.0, 20).lr == 1.0
    probe = config(LINPROBE, "cae", epochs=20, blr=0.1)
    assert task(LINPROBE, "cae").schedule(probe, 1.0, 4)(5.0, 20).lr == pytest.approx(0.5)  # of 10 epochs
    assert peak_lr(config(FINETUNE, "mae_pytorch", lr=1e-3), 1024) == pytest.approx(4e-3)
    assert peak_lr(config(LINPROBE, "mae_priv", lr=0.1), 4096) == pytest.approx(1.6)
    assert peak_lr(config(FINETUNE, "cae", lr=8e-3), 4096) == 8e-3
    assert peak_lr(config(FINETUNE, "mae", blr=5e-4), 1024) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("mae", {}, {"positions": "learned", "cls": True, "mean": True, "bias": False}),
        ("mae", {"global_pool": False}, {"positions": "learned", "cls": True, "mean": False, "bias": False}),
        ("cae", {}, {"positions": "row first", "cls": True, "mean": True, "bias": True}),
        ("cae", {"abs_pos_emb": True}, {"positions": "learned", "cls": True, "mean": True, "bias": True}),
        ("cae", {"sin_pos_emb": False}, {"positions": "none", "cls": True, "mean": True, "bias": True}),
        ("cae", {"rel_pos_bias": False}, {"positions": "row first", "cls": True, "mean": True, "bias": False}),
        ("mae_pytorch", {}, {"positions": "sinusoid", "cls": False, "mean": True, "bias": False}),
        ("mae_priv", {}, {"positions": "row first", "cls": True, "mean": False, "bias": False}),
        ("mae_priv", {"global_pool": True}, {"positions": "row first", "cls": False, "mean": True, "bias": False}),
    ],
)
def test_options_shape_the_network(method, options, expected):
    model = build_classifier(config(FINETUNE, method, **options), 3)
    encoder = model.encoder
    assert {
        "positions": encoder.positions,
        "cls": encoder.cls_token is not None,
        "mean": model.mean_pooled,
        "bias": encoder.blocks[0].attn.rel_pos_bias is not None,
    } == expected


def test_dropout_and_layer_scale_reach_the_network():
    paddle.seed(0)
    images = paddle.randn([16, 3, 16, 16])
    for options in ({"drop": 0.5}, {"attn_drop_rate": 0.5}, {"drop_path": 0.5}):
        model = build_classifier(config(FINETUNE, "cae", **{"drop_path": 0.0, "init_scale": 1.0, **options}), 3)
        model.train()
        assert np.abs((model(images) - model(images)).numpy()).max() > 0, options
        model.eval()
        assert np.abs((model(images) - model(images)).numpy()).max() == 0, options
    model = build_classifier(config(FINETUNE, "cae", layer_scale_init_value=1e-5), 3)
    np.testing.assert_allclose(model.encoder.blocks[0].gamma_1.numpy(), 1e-5, rtol=1e-6)
    assert build_classifier(config(FINETUNE, "cae", layer_scale_init_value=0.0), 3).encoder.blocks[0].gamma_1 is None


@pytest.mark.parametrize(
    ("phase", "method", "file", "std"),
    [
        (FINETUNE, "mae_pytorch", "mp_pretrain.pth", 0.02 * 0.001),
        (FINETUNE, "mae_priv", "priv_pretrain_cls.pth", 0.02 * 0.001),
        (LINPROBE, "mae_priv", "priv_pretrain_cls.pth", 0.01),
    ],
)
def test_heads_start_as_in_the_originals(phase, method, file, std, root):
    paddle.seed(0)
    settings = config(phase, method, finetune=str(root / "tests/golden/mae/checkpoints" / file))
    model = build_classifier(settings, 1000)
    start_from_pretraining(model, settings, weights.read_network(settings.finetune))
    head = model.head[1] if hasattr(model.head, "__getitem__") else model.head
    assert float(head.weight.std()) == pytest.approx(std, rel=0.05)
    assert not head.bias.numpy().any()


def picture() -> PilImage:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    return PilImage("a.png", Image.fromarray(pixels))


@pytest.mark.parametrize("phase", [FINETUNE, LINPROBE])
def test_the_crop_of_training(phase):
    crops = {}
    for name, options in {
        "default": {},
        "same": {"crop_scale": (0.08, 1.0)},
        "half": {"crop_scale": (0.5, 1.0)},
    }.items():
        transform = train_transform(config(phase, "mae", input_size=(48,), **options))
        assert transform.scale == options.get("crop_scale", (0.08, 1.0))
        crops[name] = transform(picture(), np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(crops["default"], crops["same"])
    assert (crops["default"] != crops["half"]).any()


@pytest.mark.parametrize("name", ["crop_scale", "crop_ratio"])
def test_small_inputs_have_no_crop_by_area(name):
    with pytest.raises(ConfigError, match=f"{name} has no effect on inputs of up to 32 pixels"):
        train_transform(config(FINETUNE, "mae", **{name: (0.5, 1.0)}))
    transform = train_transform(config(LINPROBE, "mae", **{name: (0.5, 1.0)}))
    assert getattr(transform, name.removeprefix("crop_")) == (0.5, 1.0)


@pytest.mark.parametrize("phase", [FINETUNE, LINPROBE])
@pytest.mark.parametrize("method", ["mae", "cae", "mae_priv", "simmim"])
def test_the_aspect_ratio_of_the_crop(phase, method, cropped_boxes):
    options = {"input_size": (48,), "crop_scale": (0.1, 0.3), "crop_ratio": (1.8, 2.8)}  # larger crops would be clamped
    ratios = [box.width / box.height for box in cropped_boxes(train_transform(config(phase, method, **options)))]
    assert len(ratios) == 100
    assert min(ratios) > 1.79  # sides of 190 pixels and more are rounded to whole ones
    assert max(ratios) < 2.82


def test_batches_are_mixed_by_their_first_sample():
    settings = config(FINETUNE, "mae", mixup=0.8, cutmix=1.0, reprob=1.0)
    mixing = ClassifyTask(build_classifier(settings, 3), Normalize(), settings, 3)
    transform = train_transform(settings)
    samples = [transform(picture(), np.random.default_rng(seed)) for seed in range(4)]
    batch = device_batch({name: np.stack([s[name] for s in samples]) for name in samples[0]})
    batch["label"] = paddle.to_tensor([0, 1, 2, 0])
    one, again = mixing.prepare(batch), mixing.prepare(batch)
    np.testing.assert_array_equal(one["image"].numpy(), again["image"].numpy())
    assert one["image"].shape == [4, 3, 16, 16]
    assert one["target"].shape == [4, 3]
    np.testing.assert_allclose(one["target"].numpy().sum(axis=1), 1, rtol=1e-6)
    other = mixing.prepare({**batch, MIX_SEED: batch[MIX_SEED][::-1]})
    assert np.abs(other["target"].numpy() - one["target"].numpy()).max() > 1e-3
    assert float(mixing(one).loss) == pytest.approx(math.log(3), rel=0.2)


def test_validation_is_neither_erased_nor_mixed():
    settings = config(FINETUNE, "mae", mixup=0.8, reprob=1.0)
    plain = ClassifyTask(build_classifier(settings, 3), Normalize(), settings, 3)
    sample = validation_transform(settings)(picture(), np.random.default_rng(0))
    assert set(sample) == {"image"}
    batch = {"image": paddle.to_tensor(sample["image"][None]), "label": paddle.to_tensor([1])}
    plain.eval()
    logits = plain.model(Normalize()(batch["image"]))
    expected = paddle.nn.functional.cross_entropy(logits, batch["label"])
    assert plain.scores(batch)["loss"].numpy()[0] == pytest.approx(float(expected), rel=1e-6)


def test_scores():
    logits = paddle.to_tensor(np.array([[9, 8, 7, 6, 5, 4.0], [0, 1, 2, 3, 4, 5]], np.float32))
    scores = classification_scores(logits, paddle.to_tensor([1, 0]))
    assert scores["acc1"].numpy().tolist() == [0, 0]
    assert scores["acc5"].numpy().tolist() == [100, 0]
    few = classification_scores(logits[:, :3], paddle.to_tensor([0, 1]))  # fewer than five classes
    assert few["acc1"].numpy().tolist() == [100, 0]
    assert few["acc5"].numpy().tolist() == [100, 100]
    assert scores[PREDICTION].numpy().tolist() == [0, 5]


@pytest.mark.parametrize(("outputs", "constant"), [(5, ("acc5",)), (6, ())])
def test_the_top5_accuracy_of_five_classes_is_constant(outputs, constant):
    settings = config(FINETUNE, "mae")
    assert ClassifyTask(build_classifier(settings, outputs), Normalize(), settings, outputs).constant_scores == constant


def test_mae_priv_has_one_kind_of_probe():
    with pytest.raises(ConfigError, match=r"--linear_type attentive_no_parameter: .* --method cae or mae"):
        build_classifier(config(LINPROBE, "mae_priv", linear_type="attentive_no_parameter"), 3)
