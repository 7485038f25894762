"""The rule that decides between the flash kernel and plain matrix products."""

from __future__ import annotations

import pytest

from plsc_mae.models.attention import uses_flash

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("head_dim", [8, 32, 64, 80, 192])
def test_flash_takes_widths_that_are_multiples_of_8(head_dim, capability):
    assert uses_flash(head_dim, capability, half=True, plain=False)


@pytest.mark.parametrize(
    ("head_dim", "capability", "half", "plain"),
    [
        (64, (7, 5), True, False),
        (64, (0, 0), True, False),
        (64, (8, 0), False, False),
        (64, (8, 0), True, True),
        (12, (8, 0), True, False),
        (200, (8, 0), True, False),  # no backward kernel on 8.6 and 8.9
    ],
)
def test_all_else_is_plain(head_dim, capability, half, plain):
    assert not uses_flash(head_dim, capability, half=half, plain=plain)
