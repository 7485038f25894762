"""The doctor's line about image sizes, and the options that it names for sizes far from the usual ones."""

from __future__ import annotations

import shlex

import pytest

from plsc_mae.cli import COMMANDS
from plsc_mae.commands.doctor_sizes import INPUT, describe_sizes
from plsc_mae.config.resolve import parse

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ([(INPUT, INPUT)] * 2, []),
        ([(500, 420), (400, 380)], []),
        (
            [(640, 480), (400, 300)],
            [
                "not square (1.3 times as wide as high): evaluation sees 65.6 % of the width and 87.5 % of the height",
                "`plsc-mae pretrain --input_size 192 256`",
                "`plsc-mae finetune --input_size 192 256 --crop_pct 1`",
            ],
        ),
        (
            [(400, 600)],
            [
                "not square (1.5 times as high as wide): evaluation sees 87.5 % of the width and 58.3 % of the height",
                "`plsc-mae pretrain --input_size 256 176 --crop_ratio 0.53 0.83`",
                "`plsc-mae finetune --input_size 256 176 --crop_ratio 0.53 0.83 --crop_pct 1`",
            ],
        ),
        ([(32, 32), (36, 33)], ["--input_size 32 --patch_size 4"]),
        ([(9, 8)], ["--input_size 16 --patch_size 4"]),
        ([(100, 99)], ["--input_size 96 --patch_size 8"]),
        ([(6000, 4000)], ["prepare-data DIR DST --short 320", "--tile 512"]),
        (
            [(900, 400)],
            [
                "2.2 times as wide as high",
                "--tile 400",
                "`plsc-mae pretrain --input_size 144 320 --crop_ratio 1.8 2.8`",
                "`plsc-mae finetune --input_size 144 320 --crop_ratio 1.8 2.8 --crop_pct 1`",
            ],
        ),
        ([(300, 900)], ["3.0 times as high as wide", "--tile 300", "--input_size 384 128 --crop_ratio 0.27 0.42"]),
    ],
)
def test_advice_for_sizes(sizes, advice):
    _, *lines = describe_sizes(sizes, fit_jpeg=True)
    assert all(words in "\n".join(lines) for words in advice)
    assert bool(lines) == bool(advice)
    for line in lines:
        for command in line.split("`")[1::2]:
            _, name, *words = shlex.split(command)
            parse(words, COMMANDS[name].configs, prog=name, positional=COMMANDS[name].positional)


def test_another_input():
    def advice(side: int) -> str:
        return "\n".join(list(describe_sizes([(side, side)], fit_jpeg=True, input_size=(64, 64)))[1:])

    assert advice(160) == advice(64) == advice(50) == ""
    assert "much larger than the input of 64 pixels" in advice(192)
    assert "--short 91`" in advice(192)
    assert "--tile 146`" in advice(192)
    assert "--input_size 128`" in advice(192)
    assert "a detail of 32 pixels has 4\n" in advice(512)
    assert "smaller than the input of 64 pixels" in advice(40)
    assert "--input_size 40 --patch_size 4" in advice(40)


@pytest.mark.parametrize(("side", "height", "seen"), [(224, 192, 87.5), (32, 28, 100), (384, 336, 100)])
def test_the_visible_part_is_that_of_the_input(side, height, seen):
    _, *lines = describe_sizes([(640, 480)], fit_jpeg=True, input_size=(side, side))
    assert f"sees {seen * 3 / 4:.3g} % of the width and {seen:g} % of the height" in lines[-3]
    assert all(f"--input_size {height} " in line for line in lines[-2:])


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        ((64, 64), ["--input_size 63 --patch_size 7`"]),
        ((9, 9), ["--input_size 14 --patch_size 7`"]),
        ((900, 900), ["`plsc-mae pretrain --input_size 448 --patch_size 7`", "--tile 512`", "--short 320`"]),
        ((320, 240), ["`plsc-mae pretrain --input_size 196 259 --patch_size 7`", "--patch_size 7 --crop_pct 1`"]),
        ((900, 400), ["`plsc-mae pretrain --input_size 147 329 --patch_size 7 --crop_ratio 1.8 2.8`"]),
    ],
)
def test_options_for_a_given_patch(size, advice):
    _, *lines = describe_sizes([size], fit_jpeg=True, patch_size=7)
    assert all(words in "\n".join(lines) for words in advice)


def test_the_range_and_the_median():
    line, *_ = describe_sizes([(224, 200), (300, 200), (500, 200)], fit_jpeg=True)
    assert line == "  pixels: 224 to 500 wide, 200 high; median 300 x 200 (width x height)"
    line, *_ = describe_sizes([(300, 200)] * 3, fit_jpeg=True)
    assert line == "  pixels: 300 wide, 200 high"


def test_images_that_jpeg_cannot_hold_are_not_resized():
    advice = "".join(describe_sizes([(6000, 6000)], fit_jpeg=False))
    assert "prepare-data" not in advice
    assert "--tile 512" in advice


def test_a_rectangular_input_is_the_readers_choice():
    (line,) = describe_sizes([(640, 480)], fit_jpeg=True, input_size=(192, 256))
    assert line == "  pixels: 640 wide, 480 high"
