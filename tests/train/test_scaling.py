"""The next learning rate of a run that learns nothing."""

from __future__ import annotations

import pytest

from plsc_mae.train.scaling import higher_rate


@pytest.mark.parametrize(("rate", "higher"), [(1e-3, 1e-2), (9e-3, 9e-2), (1e-2, 3e-2), (0.03, 0.09), (1.0, 3.0)])
def test_low_rates_are_raised_in_larger_steps(rate, higher):
    assert higher_rate(rate) == higher
