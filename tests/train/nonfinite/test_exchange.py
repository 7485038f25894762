"""Numbers of an update come through the reduction as they are, finite or not; meters leave out what is not."""

from __future__ import annotations

import math

import paddle
import pytest

from plsc_mae.parallel.world import World
from plsc_mae.train.log.meters import Meters, finite_values
from plsc_mae.train.nonfinite.exchange import exchange_numbers

pytestmark = pytest.mark.compat


class OneOfThree:
    """The second process of three; the others' part of the reduction is given."""

    process, processes = 1, 3

    def __init__(self, others: list[float]) -> None:
        self.others = others

    def largest(self, values):
        return [max(pair) for pair in zip(values.tolist(), self.others, strict=True)]


@pytest.mark.parametrize("loss", [0.5, -3.0, 0.0, 1e30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", [2.0, math.nan, math.inf])
def test_numbers_are_told_as_they_are(loss, norm):
    absent = -3.3e38
    others = OneOfThree([absent, 1.0, absent, 7.0, 0.0])
    numbers = exchange_numbers(others, paddle.to_tensor(loss), paddle.to_tensor(norm), 0)
    assert numbers.losses[::2] == [1.0, 7.0]
    for found, expected in ((numbers.losses[1], loss), (numbers.norm, norm)):
        assert math.isnan(found) if math.isnan(expected) else found == pytest.approx(expected, rel=1e-6)
    assert numbers.finite == (math.isfinite(loss) and math.isfinite(norm))
    assert numbers.bad_losses == ([] if math.isfinite(loss) else [1])


@pytest.mark.parametrize(("own", "other"), [(0, 0), (15, 0), (0, 2), (2, 15)])
def test_a_stop_signal_reaches_all_processes(own, other):
    others = OneOfThree([0.5, 1.0, -3.3e38, 7.0, other])
    numbers = exchange_numbers(others, paddle.to_tensor(1.0), paddle.to_tensor(0.5), own)
    assert (numbers.losses, numbers.norm, numbers.stop) == ([1.0, 1.0, 7.0], 0.5, max(own, other))
    alone = exchange_numbers(World("cpu"), paddle.to_tensor(1.0), paddle.to_tensor(0.5), own)
    assert (alone.losses, alone.norm, alone.stop) == ([1.0], 0.5, own)


def test_meters_leave_out_what_is_not_finite_and_say_so():
    world, meters = World("cpu"), Meters()
    for loss, rate in ((1.0, math.nan), (math.inf, math.nan), (4.0, math.nan)):
        meters.add(finite_values({"loss": paddle.to_tensor(loss), "rate": paddle.to_tensor(rate)}))
    assert meters.means(world) == {"loss": 2.5}
    assert meters.left_out == {"loss": 1, "rate": 3}
    again = Meters()
    again.load(meters.state(world), world)
    assert again.means(world) == {"loss": 2.5}
    meters.clear()
    assert meters.means(world) == {}
