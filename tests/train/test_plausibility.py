"""Recipes that do not fit the size of the data are refused or warned of, with the true numbers."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from PIL import Image

from plsc_mae.commands import classify
from plsc_mae.config import FINETUNE, LINPROBE, PRETRAIN
from plsc_mae.config.resolve import parse
from plsc_mae.data.listing import list_images
from plsc_mae.data.sequence import sequence_images
from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method
from plsc_mae.methods.label_kinds import BalancedClasses, Classes, LabelSets, Numbers
from plsc_mae.optim.schedule import by_epochs
from plsc_mae.train.plausibility import check_accumulation, warn_of_default_network, warn_of_schedule, warn_of_shape
from plsc_mae.train.scaling import remedy_at_chance

pytestmark = pytest.mark.compat
MAE = PRETRAIN["mae"](batch_size=20, epochs=400)


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    return caplog


def warned(config, heard, *, images: int = 640) -> str:
    """The warnings about the schedule of a run."""
    updates, lr = images // config.batch_size, config.blr * config.batch_size / 256 if config.lr is None else config.lr
    schedule = by_epochs(
        lr=lr, epochs=config.epochs, warmup_epochs=config.warmup_epochs, min_lr=config.min_lr, weight_decay=0.0
    )
    heard.clear()
    warn_of_schedule(config, schedule, lr=lr, updates_per_epoch=updates)
    return heard.text


@pytest.mark.parametrize(
    ("model", "n_parameters", "expected"),
    [
        (MAE.model, 330_000_000, [MAE.model, "330.0 M", "--model", "plsc-mae configs"]),
        (MAE.model, 1_000_000, []),
        ("mae_vit_huge_patch14", 660_000_000, []),
    ],
)
def test_a_large_default_network(heard, model, n_parameters, expected):
    warn_of_default_network(dataclasses.replace(MAE, model=model), n_parameters)
    assert all(words in heard.text for words in expected)
    assert bool(heard.text) == bool(expected)


@pytest.mark.parametrize(("accum_iter", "iterations"), [(1, 1), (4, 4), (3, 7)])
def test_an_epoch_with_a_whole_group_is_accepted(accum_iter, iterations):
    check_accumulation(dataclasses.replace(MAE, accum_iter=accum_iter), iterations, 1)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (dataclasses.replace(MAE, accum_iter=32), ["0.005", "0.0004687"]),
        (PRETRAIN["mae_pytorch"](batch_size=20, accum_iter=32, lr=1e-3), ["0.005", "0.0004687"]),
    ],
)
def test_a_rate_scaled_for_images_that_no_update_has_is_refused(config, rates):
    with pytest.raises(ConfigError) as raised:
        check_accumulation(config, 3, 2)
    for number in ("--accum_iter 32", "3 iterations", "120 images", "1280", "--accum_iter 3 or less", *rates):
        assert number in str(raised.value)


def test_an_absolute_rate_is_warned_of(heard):
    check_accumulation(dataclasses.replace(MAE, accum_iter=32, lr=1e-3), 3, 1)
    assert "60 images instead of 640" in heard.text
    check_accumulation(PRETRAIN["cae"](accum_iter=8), 4, 1)
    assert "--accum_iter 4 or less" in heard.text


def test_a_published_recipe_is_not_warned_of(heard):
    for config in (
        PRETRAIN["mae"](batch_size=4096, epochs=1600),
        FINETUNE["mae"](batch_size=1024, epochs=100),
        LINPROBE["mae"](batch_size=16384),
    ):
        assert warned(config, heard, images=1281167) == ""


def test_a_warm_up_of_half_the_run(heard):
    assert "takes 1280 of 1600 updates; lower --warmup_epochs" in warned(dataclasses.replace(MAE, epochs=50), heard)
    assert warned(dataclasses.replace(MAE, epochs=100), heard) == ""
    steps = PRETRAIN["cae"](batch_size=20, epochs=2, warmup_epochs=0, warmup_steps=40)
    assert "takes 40 of 64 updates; lower --warmup_steps" in warned(steps, heard)


def test_an_end_within_the_warm_up(heard):
    text = warned(dataclasses.replace(MAE, max_train_step=100), heard)
    assert "--max_train_step 100 ends within the warm-up, 1280 of " in text
    assert "lower --warmup_epochs" in text
    assert warned(dataclasses.replace(MAE, max_train_step=1280), heard) == ""


def test_final_and_first_rates_above_the_peak(heard):
    config = PRETRAIN["simmim"](batch_size=8)
    told = warned(config, heard)
    for number in ("--min_lr 2e-05", "--warmup_lr 2e-06", "1.56e-06", "for this batch"):
        assert number in told
    assert warned(dataclasses.replace(config, batch_size=512), heard) == ""
    assert "--min_lr 0.001" in warned(dataclasses.replace(MAE, lr=1e-4, min_lr=1e-3), heard)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_a_probe_that_cannot_leave_its_random_start(heard, batch_size):
    config = LINPROBE["mae"](batch_size=batch_size)
    told = warned(config, heard)
    assert "0.11 of their" in told
    assert told.rstrip().endswith(f"random start; try {remedy_at_chance(config)}")  # as at the end of the run
    assert warned(dataclasses.replace(config, blr=1000.0), heard) == ""
    assert warned(dataclasses.replace(config, opt="sgd"), heard) == ""
    assert warned(dataclasses.replace(config, lr_sweep=(0.1, 1.0)), heard) == ""


@pytest.mark.parametrize("method", LINPROBE)
def test_a_probe_needs_several_images_for_its_batch_norm(method):
    with pytest.raises(ConfigError, match=r"--batch_size 1 is too small.*--batch_size 2 or more"):
        LINPROBE[method](batch_size=1)
    assert LINPROBE[method](batch_size=1, eval=True, resume="x.pd").batch_size == 1
    assert FINETUNE[method](batch_size=1).batch_size == 1
    with pytest.raises(ConfigError, match="--batch_size 1 is too small"):
        FINETUNE["cae"](batch_size=1, enable_linear_eval=True)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (LINPROBE["mae"](batch_size=4), "over 4 images"),
        (LINPROBE["mae"](batch_size=8), ""),
        (FINETUNE["mae"](batch_size=1, mixup=0.8), "no partner"),
        (FINETUNE["mae"](batch_size=3, mixup=0.8), ""),
        (FINETUNE["mae"](model_ema=True, epochs=50), "for 250 updates: the average keeps 98 %"),
        (FINETUNE["mae"](model_ema=True, model_ema_decay=0.98, epochs=50), ""),
    ],
)
def test_parts_of_a_recipe_for_few_images(heard, config, told):
    classify._warn_of_small_data(config, 5)
    assert told in heard.text
    assert bool(told) == bool(heard.text)


def outputs_of_chance(kind, labels, rng):
    """Metric of predictions that know nothing of the images."""
    if isinstance(kind, Classes):
        return 100 * float(np.mean(rng.permutation(labels) == labels))
    return kind.metrics(rng.standard_normal(labels.shape, np.float32), labels)[kind.best_metric]


@pytest.mark.parametrize("count", [40, 400])
@pytest.mark.parametrize("kind", [Classes(), LabelSets(), Numbers()], ids=lambda kind: kind.task)
def test_a_classifier_at_chance_is_warned_of(heard, kind, count):
    """Predictions that ignore the images are within chance 19 times of 20, and useful ones are not."""
    rng, config = np.random.default_rng(1), FINETUNE["mae"](lr=1e-3)
    labels = rng.integers(0, 4, count) if isinstance(kind, Classes) else rng.integers(0, 2, (count, 3)) * np.float32(1)
    limit = kind.chance(labels)
    assert np.mean([outputs_of_chance(kind, labels, rng) <= limit for _ in range(40)]) >= 0.9
    assert classify.warn_of_chance(config, kind, limit * 0.99, labels)
    for word in (f"test_{kind.best_metric}", "validation images", "a higher --lr, for example 0.01", "doctor"):
        assert word in heard.text
    heard.clear()
    for best in (kind.perfect * 0.9, float("-inf")):
        assert not classify.warn_of_chance(config, kind, best, labels)
    assert heard.text == ""


def test_chance_of_a_balanced_run_is_that_of_guesses(heard):
    labels = np.repeat([0, 1, 2], [80, 10, 10])
    assert classify.warn_of_chance(FINETUNE["mae"](balance_classes=True), BalancedClasses(), 40.0, labels)
    assert "test_balanced_acc 40" in heard.text
    assert not classify.warn_of_chance(FINETUNE["mae"](balance_classes=True), BalancedClasses(), 70.0, labels)


def test_a_sweep_at_chance_is_told_of_its_rates(heard):
    config = LINPROBE["mae"](lr_sweep=(0.1, 1.0))
    assert classify.warn_of_chance(config, Classes(), 50.0, np.arange(20) % 2, {0.1: 1.4, 1.0: 1.3})
    assert "test_acc1 50, the best of the last epoch" in heard.text
    assert "try --lr_sweep 10 100 1000, since the highest rate, 1, " in heard.text
    assert "--blr" not in heard.text


def test_of_images_of_one_class_nothing_is_said(heard):
    classify.warn_of_chance(FINETUNE["mae"](), Classes(), 100.0, np.zeros(20, np.int64))
    assert heard.text == ""


@pytest.fixture
def pictures(tmp_path):
    """Return a function that writes pictures of one size and lists them."""

    def write(width: int, height: int):
        for i in range(5):
            Image.new("L", (width, height)).save(tmp_path / f"{i}.png")
        return list_images(tmp_path, "train")

    return write


@pytest.mark.parametrize(
    ("config", "size", "advice"),
    [
        (MAE, (900, 400), "give --input_size 144 320 --crop_ratio 1.8 2.8\n"),
        (MAE, (400, 900), "give --input_size 320 144 --crop_ratio 0.36 0.56\n"),
        (PRETRAIN["simmim"](), (900, 400), "give --input_size 160 352 --crop_ratio 1.8 2.8\n"),  # cells of 32 pixels
        (PRETRAIN["mae"](model="mae_vit_huge_patch14"), (900, 400), "give --input_size 154 350 --crop_ratio 1.8 2.8\n"),
        (dataclasses.replace(MAE, input_size=(144, 304)), (900, 400), "give --crop_ratio 1.8 2.8\n"),
        (FINETUNE["mae"](), (900, 400), "give --input_size 144 320 --crop_ratio 1.8 2.8 --crop_pct 1\n"),
        (LINPROBE["mae"](input_size=(144, 320), crop_pct=1.0), (900, 400), "give --crop_ratio 1.8 2.8\n"),
    ],
)
def test_crops_that_cannot_hold_a_whole_image(heard, pictures, config, size, advice):
    warn_of_shape(config, pictures(*size))
    (record,) = heard.records
    assert f"{size[0]} x {size[1]} (width x height)" in record.getMessage()
    assert "0.75 to 1.33" in record.getMessage()
    assert f"{record.getMessage()}\n".endswith(advice)
    center = isinstance(config, (FINETUNE["mae"], LINPROBE["mae"])) and "--input_size" in advice
    assert ("evaluation sees the center only" in record.getMessage()) == center

    # The options of the advice fit the method, and settle the matter.
    words = [f"--{name} {value}" for name, value in (("method", config.method), ("model", config.model))]
    heard.clear()
    configs = next(found for found in (PRETRAIN, FINETUNE, LINPROBE) if isinstance(config, found[config.method]))
    given = parse([*" ".join([*words, advice.removeprefix("give ")]).split()], configs, prog="")
    assert load_method(config.method).train_transform(given) if configs is PRETRAIN else True
    warn_of_shape(given, list_images(pictures(*size).root, "train"))
    assert heard.text == ""


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (500, 375)),
        ({}, (790, 400)),
        ({"crop_ratio": (1.8, 2.8)}, (900, 400)),
        ({"tile": 400}, (900, 400)),  # crops come from squares
    ],
)
def test_crops_that_suit_the_images(heard, pictures, options, size):
    warn_of_shape(dataclasses.replace(MAE, **options), pictures(*size))
    assert heard.text == ""


@pytest.mark.parametrize(("side", "told"), [(512, True), (191, False)])
def test_images_much_larger_than_the_input(heard, pictures, side, told):
    heard.set_level("INFO")
    warn_of_shape(dataclasses.replace(MAE, input_size=(64,), patch_size=8), pictures(side, side))
    assert ("a detail of 32 pixels has 4; a larger --input_size than 64" in heard.text) == told
    assert bool(heard.text) == told


def test_images_that_cannot_be_read_have_no_shape(heard, tmp_path):
    (tmp_path / "0.png").write_bytes(b"no image")
    warn_of_shape(MAE, list_images(tmp_path, "train"))
    warn_of_shape(MAE, sequence_images([np.zeros((40, 90, 3), np.uint8)], "data", labeled=False))
    assert heard.text == ""
