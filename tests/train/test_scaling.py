"""The next learning rate of a run that learns nothing, and other remedies from a high one."""

from __future__ import annotations

import math

import pytest

from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.train.scaling import USEFUL_PROBE_RATE, USEFUL_RATE, higher_rate, is_early, remedy_at_chance


@pytest.mark.parametrize(
    ("rate", "higher"), [(1e-3, 1e-2), (9e-3, 9e-2), (1e-2, 3e-2), (0.03, 0.09), (0.09, None), (1.0, None)]
)
def test_low_rates_are_raised_in_larger_steps_up_to_the_highest_useful_one(rate, higher):
    assert higher_rate(rate) == higher


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (FINETUNE["mae"](lr=None, blr=1e-3), "a higher --blr, for example 0.01 instead of 0.001, or more epochs"),
        (
            FINETUNE["mae"](lr=None, blr=USEFUL_RATE),
            "more epochs or a larger input, since --blr 0.1 is near the highest",
        ),
        (FINETUNE["mae"](lr=None, blr=10.0), "a lower --blr, since 10 is above the highest useful one, 0.1"),
        (FINETUNE["mae"](lr=5e-4, batch_size=16), "a higher --lr, for example 0.005 instead of 0.0005"),
        (FINETUNE["mae"](lr=5e-3, batch_size=16, finetune="a.pd"), "longer pre-training, "),  # 0.08 per 256 images
        (FINETUNE["mae_priv"](lr=5e-3, batch_size=16), "a higher --lr, for example 0.05 "),  # is per 256 images
        (LINPROBE["mae"](lr=None, blr=100.0), "several rates with --lr_sweep 10 100 1000, or more epochs"),
        (LINPROBE["mae"](lr=None, blr=USEFUL_PROBE_RATE), "more epochs"),
        (LINPROBE["mae"](lr=0.1, blr=None, batch_size=16), "several rates with --lr_sweep 0.625 6.25 62.5, or"),
    ],
)
def test_the_remedy_at_chance(config, remedy):
    assert remedy_at_chance(config).startswith(remedy)


@pytest.mark.parametrize(
    ("losses", "remedy"),
    [
        ({0.1: 1.2, 1.0: 1.4}, "more epochs or other features, since the highest rate, 1, does not have the lowest"),
        ({0.1: 1.2, 1.0: math.nan}, "more epochs or other features, since the highest rate, 1, does not have"),
        ({0.1: 1.4, 1.0: 1.2}, "--lr_sweep 10 100 1000, since the highest rate, 1, has the lowest test_loss"),
        ({300.0: 1.2, 0.1: math.nan}, "--lr_sweep 1000, since the highest rate, 300, has"),
        ({10.0: 1.4, 1000.0: 1.2}, "more epochs or other features, since 1000 is near the highest useful rate, 1000"),
    ],
)
def test_a_sweep_at_chance_is_told_the_case_that_holds(losses, remedy):
    assert remedy_at_chance(LINPROBE["mae"](lr_sweep=tuple(losses)), losses).startswith(remedy)


@pytest.mark.parametrize(("epochs", "early"), [(0, True), (1, True), (3, False), (7, False)])
def test_a_run_is_judged_from_a_third_of_its_epochs(epochs, early):
    assert is_early(FINETUNE["mae"](epochs=7, warmup_epochs=0), epochs, 5 * epochs) == early
