"""CAE's task and transforms: order of targets, loss, schedule, masks, pictures, and what is told of mistakes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from plsc_mae import weights
from plsc_mae.config import CAEConfig, MAEConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.seeding import sample_rng
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.losses import alignment_loss
from plsc_mae.methods import load_method
from plsc_mae.methods.targets import Target

pytestmark = pytest.mark.compat

CAE = load_method("cae")
RANDOM_MASKS = {"mask_generator": "random", "num_mask_patches": None}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def image(tmp_path):
    """A JPEG of 48 by 40 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return open_image(path)


class Numbers(Target):
    """A target that names every patch: 100 times the image, plus the patch."""

    num_classes = 32

    def __init__(self, *, as_vectors: bool = False):
        super().__init__()
        self.as_vectors = as_vectors

    def forward(self, batch):
        named = 100 * paddle.arange(2).unsqueeze(1) + paddle.arange(16)
        return paddle.stack([named, -named], axis=-1) if self.as_vectors else named

    def loss(self, pred, target):
        return paddle.abs(pred.mean()), {}


@pytest.mark.parametrize("as_vectors", [False, True])
def test_prepare_takes_the_hidden_patches_image_by_image_in_raster_order(task, batch, as_vectors):
    built, mask = task(), batch["mask"].numpy()
    built.target = Numbers(as_vectors=as_vectors)
    prepared = built.prepare(batch)
    expected = (100 * np.arange(2)[:, None] + np.arange(16))[mask]
    if as_vectors:
        expected = np.stack([expected, -expected], axis=-1)
    np.testing.assert_array_equal(prepared["target"].numpy(), expected)
    assert prepared["target"].stop_gradient
    assert {name for name in prepared if name != "target"} == set(batch)
    assert "target" not in batch


def test_the_loss_is_the_sum_of_its_parts(task, batch):
    for options in ({}, {"dual_loss_weight": 0.5}, {"dual_loss_type": "kld", "dual_loss_weight": 3.0}):
        built = task(**options)
        built.eval()
        prepared = built.prepare(batch)
        out = built(prepared)
        network = built.model(built.normalize(batch["image"]), batch["mask"])
        config = built.config
        main = nn.functional.cross_entropy(network.logits, prepared["target"])
        align = alignment_loss(network.latent, network.latent_target, config.dual_loss_type)
        assert float(out.logs["loss_main"]) == pytest.approx(float(main), rel=1e-6)
        assert float(out.logs["loss_align"]) == pytest.approx(config.dual_loss_weight * float(align), rel=1e-6)
        assert float(out.loss) == pytest.approx(float(out.logs["loss_main"] + out.logs["loss_align"]), rel=1e-6)
        assert set(out.logs) == {"loss", "loss_main", "loss_align", "mlm_acc", "top_token_share"}
        assert all(log.stop_gradient for log in out.logs.values())


def test_only_classes_have_an_accuracy(task, batch):
    built = task(target_mode="rgb")
    assert set(built(built.prepare(batch)).logs) == {"loss", "loss_main", "loss_align"}
    built = task(target_mode="random", decoder_num_classes=16)
    assert "mlm_acc" in built(built.prepare(batch)).logs


def test_the_networks_view_is_normalized_as_the_option_says(task):
    black = paddle.zeros([1, 2, 2, 3], "uint8")
    np.testing.assert_allclose(task().normalize(black).numpy(), -1.0)  # mean and std 0.5
    shown = task(imagenet_default_mean_and_std=True).normalize(black).numpy()[0, :, 0, 0]
    np.testing.assert_allclose(shown, -np.divide(*IMAGENET), rtol=1e-6)


def test_options_reach_the_network(task):
    model = task(
        drop_path=0.25,
        depth=2,
        layer_scale_init_value=0.0,
        decoder_layer_scale_init_value=0.5,
        regressor_depth=3,
        num_decoder_self_attention=2,
        dual_path_ema=0.5,
        mlp_ratio=2.0,
    ).model
    assert model.encoder.blocks[0].gamma_1 is None
    assert float(model.decoder.blocks[1].gamma_2[0]) == float(model.regressor.blocks[2].gamma_1[0]) == 0.5
    assert [block.drop_path.rate for block in model.encoder.blocks] == [0.0, 0.25]
    assert [block.drop_path.rate for block in model.regressor.blocks] == [0.0, 0.125, 0.25]
    assert model.alignment_encoder is not None
    assert list(model.decoder.blocks[0].mlp.fc1.weight.shape) == [24, 48]


def test_the_averaged_encoder_follows_a_step(task):
    built = task(dual_path_ema=0.5)
    source, averaged = built.model.encoder.norm.weight, built.model.alignment_encoder.norm.weight
    source.set_value(source + 1)
    built.after_step()
    np.testing.assert_allclose(averaged.numpy(), 1.5)


@pytest.mark.parametrize("dual_path_ema", [0.0, 0.5])
def test_training_is_three_forward_passes_and_one_of_the_target(task, config, dual_path_ema):
    built = task(dual_path_ema=dual_path_ema)
    student, target = built.model.forward_macs(6)
    assert CAE.training_macs(built.config, built) == 3 * student + target
    assert task(num_mask_patches=9).num_masked == 9


def test_ninety_eight_patches_are_hidden_where_no_number_is_given(config, image):
    options = {"num_mask_patches": None, "min_mask_patches_per_block": 16, "input_size": (112,)}  # 14x14 patches
    assert CAE.train_transform(config(**options))(image, sample_rng(0, 0, 0))["mask"].sum() == 98
    assert CAE.build_task(config(**options)).num_masked == 98


def test_masks_hide_as_many_patches_as_asked_and_belong_to_their_sample(config, image):
    for options, hidden in (
        ({}, 6),
        ({"num_mask_patches": 9}, 9),
        ({"max_mask_patches_per_block": 3}, 6),
        ({**RANDOM_MASKS, "ratio_mask_patches": 0.45}, 7),
    ):
        transform = CAE.train_transform(config(**options))
        masks = {}
        for key in [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)]:
            mask = transform(image, sample_rng(*key))["mask"]
            assert (mask.dtype, mask.shape, mask.sum()) == (np.bool_, (16,), hidden)
            np.testing.assert_array_equal(mask, transform(image, sample_rng(*key))["mask"])
            masks[key] = tuple(mask)
        assert len(set(masks.values())) >= 6
        assert CAE.build_task(config(**options)).num_masked == hidden


def test_block_masks_are_rectangles(config, image):
    """With all hidden patches in the one block, rows and columns of it are hidden in whole."""
    options = {"num_mask_patches": 6, "min_mask_patches_per_block": 6}
    solid = 0
    for index in range(30):
        mask = CAE.train_transform(config(**options))(image, sample_rng(0, 0, index))["mask"].reshape(4, 4)
        rows, columns = mask.any(axis=1).sum(), mask.any(axis=0).sum()
        solid += rows * columns == 6
    assert solid >= 10
    scattered = CAE.train_transform(config(**RANDOM_MASKS, ratio_mask_patches=6 / 16))
    masks = [scattered(image, sample_rng(0, 0, index))["mask"].reshape(4, 4) for index in range(30)]
    assert sum(mask.any(axis=1).sum() * mask.any(axis=0).sum() == 6 for mask in masks) <= 2


def test_both_views_have_the_sizes_of_one_token_per_patch(config, image):
    for make in (CAE.train_transform, CAE.view_transform):
        sample = make(config(input_size=(32, 64)))(image, sample_rng(0, 0, 0))
        assert {name: array.shape for name, array in sample.items()} == {
            "image": (32, 64, 3),
            "tokenizer_image": (32, 64, 3),
            "mask": (32,),
        }
        sample = make(config(patch_size=16, num_mask_patches=2))(image, sample_rng(0, 0, 0))
        assert sample["tokenizer_image"].shape == (16, 16, 3)
    view = CAE.view_transform(config())
    one, two = (view(image, sample_rng(seed, 0, 0)) for seed in (0, 1))
    np.testing.assert_array_equal(one["image"], two["image"])
    assert (one["mask"] != two["mask"]).any()


def test_another_size_of_the_tokenizers_view_is_refused(config):
    assert CAE.build_task(config(second_input_size=(32,))).num_masked == 6
    told = r"second_input_size \(40,\) .* 4 x 4 patches.* 32 x 32"
    for use in (CAE.build_task, CAE.train_transform, CAE.view_transform):
        with pytest.raises(ConfigError, match=told):
            use(config(second_input_size=(40,)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_mask_patches": 16}, "--num_mask_patches 16 hides 16 of 4x4 patches; at least 1 and at most 15"),
        ({**RANDOM_MASKS, "ratio_mask_patches": 0.05}, "--ratio_mask_patches 0.05 hides 0 of 4x4"),
        ({"discrete_vae_dtype": "float16"}, "the tokenizer computes in float16 on GPU only"),
    ],
)
def test_options_that_cannot_be_obeyed(config, options, told):
    if "discrete_vae_dtype" in options and paddle.get_device() != "cpu":
        pytest.skip("for CPU")
    with pytest.raises(ConfigError, match=told):
        CAE.build_task(config(**options))


def test_a_random_tokenizer_is_told(config, tokenizer, warnings):
    folder, _ = tokenizer()
    for options in ({"discrete_vae_weight_path": folder}, {"target_mode": "rgb", "discrete_vae_type": "random_init"}):
        CAE.build_task(config(**options))
        assert not warnings()
    CAE.build_task(config())
    (told,) = warnings()
    assert told.startswith("the tokenizer is RANDOM (--discrete_vae_type random_init)")


def test_pictures_of_a_random_tokenizer(task, batch):
    built = task()
    drawn = built.pictures(batch)
    assert not built.predicts_pixels  # the third picture predicts tokens
    assert list(drawn) == [
        "original",
        "masked",
        "its tokens, each as its mean patch in these images",
        "hidden tokens predicted, each as its mean patch in these images",
    ]
    assert all((picture.dtype, picture.shape) == (np.uint8, (2, 32, 32, 3)) for picture in drawn.values())
    np.testing.assert_array_equal(drawn["original"], batch["image"].numpy())
    hidden = batch["mask"].numpy().reshape(2, 4, 4).repeat(8, axis=1).repeat(8, axis=2)
    np.testing.assert_array_equal(drawn["masked"][~hidden], drawn["original"][~hidden])
    assert (drawn["masked"][hidden] == 128).all()

    tokens, theirs, ours = built.target(batch).numpy(), *list(drawn.values())[2:]
    cut = batch["image"].numpy().reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(32, 8, 8, 3)
    same = tokens.reshape(-1) == tokens[1, 5]
    found = theirs[1, 8:16, 8:16].astype(int)  # patch 5 of the second image
    assert np.abs(found - cut[same].mean(axis=0)).max() <= 0.51
    np.testing.assert_array_equal(ours[~hidden], theirs[~hidden])


def test_pictures_by_the_dvaes_decoder(task, tokenizer, batch):
    folder, _ = tokenizer()
    labels = list(task(discrete_vae_weight_path=folder).pictures(batch))
    assert labels[2] == "its tokens, each as its mean patch in these images"
    tokenizer(decoder=True)
    drawn = task(discrete_vae_weight_path=folder).pictures(batch)
    assert list(drawn)[2:] == ["its tokens, decoded by the dVAE", "hidden tokens predicted, decoded by the dVAE"]
    assert all((picture.dtype, picture.shape) == (np.uint8, (2, 32, 32, 3)) for picture in drawn.values())


def test_pictures_are_as_large_as_the_images(task, tokenizer, batch):
    """Patches of 16 pixels have tokens of 8, so what the decoder draws is enlarged."""
    folder, _ = tokenizer(decoder=True)
    built = task(discrete_vae_weight_path=folder, patch_size=16, num_mask_patches=2)
    small = {
        "tokenizer_image": batch["tokenizer_image"][:, :16, :16],
        "mask": paddle.to_tensor([[True, False] * 2] * 2),
    }
    assert {picture.shape for picture in built.pictures({**batch, **small}).values()} == {(2, 32, 32, 3)}


@pytest.mark.parametrize("kind", ["layernorm", "none", "patch", "channel"])
@pytest.mark.parametrize("denorm", [False, True])
def test_pictures_of_pixels(task, batch, kind, denorm):
    built = task(target_mode="rgb", normalized_pixel=kind, denorm=denorm, imagenet_default_mean_and_std=True)
    drawn = built.pictures(batch)
    statistics = "" if kind == "none" else ", with their patches' statistics"
    assert list(drawn) == ["original", "masked", f"hidden pixels predicted{statistics}"]
    hidden = batch["mask"].numpy().reshape(2, 4, 4).repeat(8, axis=1).repeat(8, axis=2)
    original, predicted = drawn["original"].astype(int), drawn[list(drawn)[2]].astype(int)
    assert np.abs(original - predicted)[~hidden].max() <= 1
    assert np.abs(original - predicted)[hidden].mean() > 10
    assert built.predicts_pixels
    np.testing.assert_array_equal(built.hidden_patches(batch), batch["mask"].numpy().reshape(2, 4, 4))

    # A network that predicts the targets themselves draws the original.
    targets = built.prepare(batch)["target"]

    class Oracle(nn.Layer):
        def forward(self, images, mask):
            return SimpleNamespace(logits=targets)

    oracle = Oracle()
    oracle.encoder, oracle.patch_size = built.model.encoder, built.model.patch_size
    built.model = oracle
    perfect = built.pictures(batch)
    assert np.abs(perfect["original"].astype(int) - perfect[list(perfect)[2]].astype(int)).max() <= 1


def test_vectors_are_drawn_as_mean_patches(task, batch):
    drawn = task(target_mode="random", decoder_num_classes=16).pictures(batch)
    assert list(drawn)[3] == "hidden tokens predicted, each as its mean patch in these images"


def test_drawing_leaves_the_network_as_it_was(task, batch):
    built = task(drop_path=0.5)
    built.train()
    one, two = (built.pictures(batch) for _ in range(2))
    assert built.model.training
    for label, picture in one.items():
        np.testing.assert_array_equal(picture, two[label])


def test_patch_stats_belong_to_networks_that_predict_normalized_pixels(task, batch):
    with pytest.raises(ConfigError, match=r"--patch_stats .* CAE"):
        task().pictures(batch, "original")
    sizes = {"input_size": (32,), "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4}
    sizes |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}
    mae, noise = load_method("mae"), paddle.rand([2, 16])
    plain = mae.build_task(MAEConfig(model="mae_vit_tiny_patch16", **sizes))
    with pytest.raises(ConfigError, match="--patch_stats is for models trained with norm_pix_loss"):
        plain.pictures({**batch, "noise": noise}, "visible")
    normed = mae.build_task(MAEConfig(model="mae_vit_tiny_patch16", **sizes, norm_pix_loss=True))
    assert len(normed.pictures({**batch, "noise": noise}, "visible")) == 4


def test_a_network_read_off_its_tensors_is_the_same_network(task):
    built = task(layer_scale_init_value=0.0, depth=2, regressor_depth=2)
    for dialect in ("cae", "plsc_cae"):
        arrays = weights.export(built.model, dialect)
        arguments = CAE.infer_arguments(weights.Checkpoint(Path("file"), arrays, arrays, {}, dialect))
        arguments |= {"num_heads": 4, "decoder_num_heads": 4}  # of an unpublished width
        config = CAE.config_of(arguments)
        names = ("patch_size", "embed_dim", "depth", "num_heads", "decoder_embed_dim", "regressor_depth")
        names += ("num_decoder_self_attention", "layer_scale_init_value", "decoder_layer_scale_init_value")
        assert {name: getattr(config, name) for name in names} == {name: getattr(built.config, name) for name in names}
        assert config.image_size == (32, 32)
        assert config.imagenet_default_mean_and_std  # as in every published recipe


def test_a_damaged_decoder_is_told(task, tokenizer, batch, tmp_path):
    folder, _ = tokenizer(decoder=True)
    built = task(discrete_vae_weight_path=folder)
    (tmp_path / "decoder_weight.pd").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"decoder_weight\.pd is not a weight file"):
        built.pictures(batch)


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, []),
        ({"denorm": True, "normalized_pixel": "none"}, ["normalized_pixel", "denorm"]),
        ({"target_mode": "rgb", "discrete_vae_weight_path": "nowhere"}, ["discrete_vae_weight_path"]),
        ({"target_mode": "rgb", "discrete_vae_seed": 3}, ["discrete_vae_seed"]),
        ({"target_mode": "random", "discrete_vae_seed": 3, "decoder_num_classes": 32}, []),
        ({**RANDOM_MASKS, "ratio_mask_patches": 0.4}, ["min_mask_patches_per_block"]),  # 2 in the tiny config
    ],
)
def test_options_with_nothing_to_act_on_are_told(task, caplog, options, idle):
    task(**options)
    told = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert [message.split()[0] for message in told] == [f"--{name}" for name in idle]


def test_a_decoder_that_cannot_draw_is_told_before_training(task, tokenizer):
    """Pictures come epochs later, maybe before the first checkpoint."""
    folder, _ = tokenizer(decoder=True)
    task(discrete_vae_weight_path=folder)
    path = f"{folder}/decoder_weight.pd"
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="decoder_weight"):
        task(discrete_vae_weight_path=folder)
    task(discrete_vae_weight_path=folder, vis_freq=0)


@pytest.mark.parametrize(
    ("size", "hidden", "smallest"), [(32, 2, 1), (64, 8, 1), (144, 40, 6), (160, 98, 16), (224, 98, 16), (384, 98, 16)]
)
def test_default_masks_fit_small_grids(size, hidden, smallest):
    config = CAEConfig(input_size=(size,))
    assert CAE._block_sizes(config) == (hidden, smallest)
    draw, count = CAE._masks(config)
    assert int(draw(np.random.default_rng(0)).sum()) == count == hidden


def test_chosen_masks_stay(caplog):
    config = CAEConfig(input_size=(64,), min_mask_patches_per_block=2)
    assert CAE._block_sizes(config) == (8, 2)
    assert CAE._block_sizes(CAEConfig(input_size=(64,), num_mask_patches=5))[0] == 5
    with pytest.raises(ConfigError, match="--num_mask_patches 98"):
        CAE._masks(CAEConfig(input_size=(64,), num_mask_patches=98))


def test_adapted_masks_are_reported(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    for size, told in ((64, "hiding 8"), (160, "leaves 2 of 100 visible; --num_mask_patches 50"), (192, "")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            CAE.log_remarks(CAEConfig(input_size=(size,)), None)
        assert told in caplog.text
        assert bool(told) == bool(caplog.text)
