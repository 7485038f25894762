"""The next learning rate of a run that learns nothing, and other remedies from a high one."""

from __future__ import annotations

import pytest

from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.train.scaling import USEFUL_PROBE_RATE, USEFUL_RATE, higher_rate, remedy_at_chance


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
        (FINETUNE["mae"](lr=5e-4, batch_size=16), "a higher --lr, for example 0.005 instead of 0.0005"),
        (FINETUNE["mae"](lr=5e-3, batch_size=16, finetune="a.pd"), "longer pre-training, "),  # 0.08 per 256 images
        (FINETUNE["mae_priv"](lr=5e-3, batch_size=16), "a higher --lr, for example 0.05 "),  # is per 256 images
        (LINPROBE["mae"](lr=None, blr=100.0), "several rates with --lr_sweep 10 100 1000, or more epochs"),
        (LINPROBE["mae"](lr=None, blr=USEFUL_PROBE_RATE), "more epochs"),
        (LINPROBE["mae"](lr_sweep=(0.1, 1.0)), "more epochs, other features, or higher rates with --lr_sweep if "),
    ],
)
def test_the_remedy_at_chance(config, remedy):
    assert remedy_at_chance(config).startswith(remedy)
