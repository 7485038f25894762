"""The search for the layer whose output is not finite."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from plsc_mae.train.nonfinite.diagnosis import first_bad_layer

pytestmark = [pytest.mark.compat, pytest.mark.once]


class Part(nn.Layer):
    """Layer that returns its input in a container."""

    def __init__(self, pack) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, value):
        return self.pack(value)


@pytest.mark.parametrize(
    "pack",
    [
        lambda tensor: tensor,
        lambda tensor: (1, [tensor]),
        lambda tensor: {"features": tensor},
        lambda tensor: {"name": "x", "parts": [{"deep": tensor}]},
    ],
)
@pytest.mark.parametrize("bad", ["nan", "inf", "0"])
def test_outputs_in_lists_tuples_and_dicts(pack, bad):
    network = nn.LayerDict({"good": Part(lambda tensor: {"features": tensor * 0}), "bad": Part(pack)})

    def forward() -> None:
        network["good"](paddle.ones([2]))
        network["bad"](paddle.full([2], float(bad)))

    assert first_bad_layer(network, forward) == (None if bad == "0" else "bad")
