"""The aspect ratio of the random crops of every pre-training method."""

from __future__ import annotations

import pytest

from plsc_mae.config import PRETRAIN
from plsc_mae.methods import load_method

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("method", sorted(PRETRAIN))
@pytest.mark.parametrize(("options", "size"), [({}, (1000, 1000)), ({"crop_ratio": (1.8, 2.8)}, (900, 2000))])
def test_crops_have_the_aspect_ratio_of_the_option(method, options, size, cropped_boxes):
    boxes = cropped_boxes(load_method(method).train_transform(PRETRAIN[method](**options)), *size)
    low, high = options.get("crop_ratio", (3 / 4, 4 / 3))
    ratios = [box.width / box.height for box in boxes]
    assert len(ratios) >= 100  # CAE crops an image twice, by the same box
    # Sides of 200 pixels and more (8 % of the area) are rounded to whole ones.
    assert min(ratios) > low - 0.02
    assert max(ratios) < high + 0.02
    assert max(ratios) - min(ratios) > 0.6 * (high - low)  # large crops have the shape of the image
