"""RandAugment: every operation against pictures recorded from timm 0.3.2, the notation, and the draws."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import PIL
import pytest
from PIL import Image

from plsc_mae.data import randaugment
from plsc_mae.data.randaugment import CHOICE_WEIGHTS, Operation, RandAugment, Resampling, operations
from plsc_mae.data.seeding import sample_rng
from plsc_mae.errors import ConfigError

pytestmark = [pytest.mark.compat, pytest.mark.once]

RECIPE = "rand-m9-mstd0.5-inc1"
SIGNS = {"pos": 1, "neg": -1}


@pytest.fixture
def recorded(golden):
    return golden("mae/img_randaugment")


def recorded_name(operation: str) -> str:
    """As timm calls those of its increasing set."""
    changed = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    return f"{operation}Increasing" if operation in changed else operation


def test_operations_are_timms_in_its_order(recorded):
    assert [recorded_name(name) for name in operations(increasing=True)] == recorded.meta["op_order"]
    assert list(operations(increasing=False)) == list(operations(increasing=True))


def test_arguments_are_timms(recorded):
    increasing = {recorded_name(name): operation for name, operation in operations(increasing=True).items()}
    assert len(recorded.meta["level_args"]) == 48
    for case, expected in recorded.meta["level_args"].items():
        name, level, sign = case.split("|")
        argument = increasing[name].argument(float(level[1:]), SIGNS[sign])
        assert ([] if argument is None else [argument]) == expected, case


def test_pictures_are_timms(recorded):
    tolerance = 0 if PIL.__version__ == recorded.meta["pillow"] else 1  # levels; what the record allows
    how = Resampling(Image.Resampling.BICUBIC, tuple(recorded.meta["hparams"]["img_mean"]))
    increasing = {recorded_name(name): operation for name, operation in operations(increasing=True).items()}
    cases = recorded.group("output")
    assert len(cases) == 96
    for case, expected in cases.items():
        name, level, sign, image = case.split("_")
        picture = Image.fromarray(recorded[f"input/{image.replace('img', 'image')}"])
        operation = increasing[name]
        argument = operation.argument(float(level[1:]), SIGNS[sign])
        actual = np.asarray(operation.apply(picture, argument, how))
        np.testing.assert_allclose(actual.astype(int), expected.astype(int), rtol=0, atol=tolerance, err_msg=case)


def test_fill_is_the_mean_color():
    assert RandAugment.parse(RECIPE).fill == (124, 116, 104)
    assert RandAugment.parse(RECIPE, mean=(0.5, 0.5, 0.5)).fill == (128, 128, 128)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", RandAugment()),
        (RECIPE, RandAugment(9, magnitude_std=0.5, increasing=True)),
        ("rand-mstd0.5-inc1-m9", RandAugment(9, magnitude_std=0.5, increasing=True)),
        ("rand-m7-n3", RandAugment(7, 3)),
        ("rand-m9-inc0", RandAugment(9, increasing=True)),
        ("rand-m9-mstd101", RandAugment(9, magnitude_std=math.inf)),
        ("rand-m9-mstdinf", RandAugment(9, magnitude_std=math.inf)),
        ("rand-m12-mmax15", RandAugment(12, magnitude_max=15)),
        ("rand-m8-w0", RandAugment(8, weighted=True)),
    ],
)
def test_grammar(text, expected):
    assert RandAugment.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "augmix-m5",
        "original",
        "rand-",
        "rand-m",
        "rand-m9.5",
        "rand-m-9",
        "rand-9",
        "rand-n0",
        "rand-inc",
        "rand-w1",
        "rand-mstd1.2.3",
        "rand-p0.5",
        "rand-M9",
        "rand-m9 ",
        "rand-w0-n14",
    ],
)
def test_bad_notation_is_rejected_with_an_example(text):
    with pytest.raises(ConfigError, match=rf"--aa '{text}' .*rand-m9-mstd0\.5-inc1"):
        RandAugment.parse(text)


def test_draws_belong_to_the_sample_and_leave_the_picture_alone(recorded):
    picture = Image.fromarray(recorded["input/image0"])
    augment = RandAugment.parse(RECIPE)
    results = [np.asarray(augment(picture, sample_rng(0, 0, index))) for index in range(8)]
    again = [np.asarray(augment(picture, sample_rng(0, 0, index))) for index in range(8)]
    np.testing.assert_array_equal(results, again)
    assert len({result.tobytes() for result in results}) > 4
    np.testing.assert_array_equal(np.asarray(picture), recorded["input/image0"])


@pytest.fixture
def spied(monkeypatch):
    """Record each applied operation as (operation, level, sign), and leave pictures unchanged."""
    calls: list[tuple[str, float, int]] = []

    def spy(name: str) -> Operation:
        return Operation(
            lambda level, sign: (level, sign),
            lambda image, drawn, _how: calls.append((name, *drawn)) or image,
        )

    spies = {name: spy(name) for name in operations(increasing=True)}
    monkeypatch.setattr(randaugment, "operations", lambda **_: spies)
    return calls


def run(text: str, times: int) -> None:
    augment, picture = RandAugment.parse(text), Image.new("RGB", (4, 4))
    for index in range(times):
        augment(picture, sample_rng(0, 0, index))


def test_half_of_two_operations_each_as_likely_with_normal_levels_and_either_sign(spied):
    run(RECIPE, 6000)
    # Limits of 5 standard deviations of what is drawn
    assert abs(len(spied) - 6000) < 5 * math.sqrt(12000 / 4)
    counts = Counter(name for name, _, _ in spied)
    assert len(counts) == 15
    assert all(abs(count - 400) < 5 * 20 for count in counts.values())
    levels = np.array([level for _, level, _ in spied])
    assert levels.max() == 10  # clipped: two standard deviations above the mean
    assert abs(np.median(levels) - 9) < 5 * 0.5 * 1.26 / math.sqrt(6000)
    assert abs(np.percentile(levels, 15.87) - 8.5) < 0.06
    assert abs(sum(sign for _, _, sign in spied)) < 5 * math.sqrt(6000)


def test_a_weighted_choice_is_by_weight_and_without_repetition(spied):
    augment = RandAugment.parse("rand-m5-n13-w0")
    for index in range(30):
        spied.clear()
        augment(Image.new("RGB", (4, 4)), sample_rng(0, 0, index))
        assert len({name for name, _, _ in spied}) == len(spied) > 0
    spied.clear()
    run("rand-m5-n1-w0", 4000)
    counts = Counter(name for name, _, _ in spied)
    assert set(counts) <= set(CHOICE_WEIGHTS)
    share = counts["Rotate"] / len(spied)
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / len(spied))
    assert {level for _, level, _ in spied} == {5.0}


def test_an_infinite_deviation_is_uniform_up_to_the_magnitude(spied):
    run("rand-m8-mstd101", 3000)
    levels = np.array([level for _, level, _ in spied])
    assert 0 <= levels.min() < 0.1
    assert 7.9 < levels.max() < 8
    assert abs(levels.mean() - 4) < 5 * 8 / math.sqrt(12 * len(levels))


def test_levels_stop_at_the_largest_magnitude(spied):
    run("rand-m14", 20)
    run("rand-m14-mmax12", 20)
    assert {level for _, level, _ in spied} == {10.0, 12.0}


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("level", [0.0, 10.0, 25.0])
def test_extreme_levels_make_pictures_too(recorded, increasing, level):
    picture = Image.fromarray(recorded["input/image1"])
    how = Resampling(Image.Resampling.BILINEAR, (0, 0, 0))
    for name, operation in operations(increasing=increasing).items():
        for sign in (1, -1):
            result = operation.apply(picture, operation.argument(level, sign), how)
            assert (result.size, result.mode) == (picture.size, "RGB"), name


def test_posterizing_to_0_bits_is_black(recorded):
    """Level 10 asks for it, and Pillow's own function may refuse it."""
    how = Resampling(Image.Resampling.BICUBIC, (124, 116, 104))
    posterize = operations(increasing=True)["Posterize"]
    picture = posterize.apply(Image.fromarray(recorded["input/image0"]), posterize.argument(10.0, 1), how)
    assert not np.asarray(picture).any()


@pytest.mark.parametrize(
    ("name", "arguments", "increasing_arguments"),
    [
        ("Posterize", [0, 2, 4], [4, 2, 0]),
        ("Solarize", [0, 128, 256], [256, 128, 0]),
        ("Color", [0.1, 1.0, 1.9], [1.0, 1.45, 1.9]),
    ],
)
def test_what_increases_is_weakest_at_level_0(name, arguments, increasing_arguments):
    for increasing, expected in ((False, arguments), (True, increasing_arguments)):
        argument = operations(increasing=increasing)[name].argument
        np.testing.assert_allclose([argument(level, 1) for level in (0, 5, 10)], expected, rtol=1e-12)


def test_random_interpolation_is_drawn():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    results = {}
    for kind in ("bicubic", "bilinear", "random"):
        augment = RandAugment.parse("rand-m9-n4-inc1", interpolation=kind)
        results[kind] = np.stack([np.asarray(augment(picture, sample_rng(0, 0, index))) for index in range(4)])
    assert (results["bicubic"] != results["bilinear"]).any()
    assert (results["random"] != results["bicubic"]).any()
