"""Mixup and CutMix against images and targets recorded from timm 0.3.2, and the distribution of their draws."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.data.decode import Box
from plsc_mae.data.mixup import Mixing, Mixup, cutmix_box, make_mixing, mix_images, mix_labels

pytestmark = pytest.mark.compat

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # the record's own: float32 roundings of one weighted sum
SIZE = (16, 16)
NOWHERE = Box(0, 0, 0, 0)


@pytest.fixture
def recorded(golden):
    return golden("mae/mixup_losses")


def assert_mixed(recorded, mixing: Mixing, name: str) -> None:
    images = mix_images(paddle.to_tensor(recorded["input/x"]), mixing)
    np.testing.assert_allclose(images.numpy(), recorded[f"output/{name.format('x')}"], **TOLERANCE)
    targets = mix_labels(paddle.to_tensor(recorded["input/target"]), mixing, 10, recorded.meta["smoothing"])
    np.testing.assert_allclose(targets.numpy(), recorded[f"output/{name.format('target')}"], **TOLERANCE)


@pytest.mark.parametrize("case", range(4))
def test_batches_are_timms(recorded, case):
    lam = recorded.meta["cases"]["lams"][case]
    assert_mixed(recorded, make_mixing(np.array([lam]), np.array([False]), [NOWHERE], SIZE), f"batch_mixup_{{}}_{case}")
    expected = recorded.meta["cases"][f"cutmix_{case}"]
    box = cutmix_box(lam, (expected["cy"], expected["cx"]), SIZE)
    top, bottom, left, right = expected["yl_yh_xl_xh"]
    assert box == (top, left, bottom - top, right - left)
    mixing = make_mixing(np.array([lam]), np.array([True]), [box], SIZE)
    np.testing.assert_allclose(mixing.lam, expected["corrected_lam"], rtol=1e-12)
    assert_mixed(recorded, mixing, f"batch_cutmix_{{}}_{case}")


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("case", range(4))
def test_targets_are_timms(recorded, case, smooth):
    lam = np.array([recorded.meta["cases"]["lams"][case]])
    mixing = make_mixing(lam, np.array([False]), [NOWHERE], SIZE)
    smoothing = recorded.meta["smoothing"] if smooth else 0.0
    targets = mix_labels(paddle.to_tensor(recorded["input/target"]), mixing, 10, smoothing)
    name = f"output/mixup_target_{case}" if smooth else f"output/mixup_target_nosmooth_{case}"
    np.testing.assert_allclose(targets.numpy(), recorded[name], **TOLERANCE)


@pytest.mark.parametrize(("mode", "rows"), [("elem", np.arange(6)), ("pair", np.array([0, 1, 2, 2, 1, 0]))])
def test_own_draws_for_images_and_pairs_are_timms(recorded, mode, rows):
    lam = recorded[f"input/{mode}_lam"].astype(np.float64)
    cutmix = recorded[f"input/{mode}_use_cutmix"]
    centers = iter(recorded[f"input/{mode}_centres_cy_cx_in_order"].tolist())
    boxes = [
        cutmix_box(lam[i], (next(centers), next(centers)), SIZE) if cutmix[i] else NOWHERE for i in range(len(lam))
    ]
    mixing = make_mixing(lam, cutmix, boxes, SIZE)
    assert_mixed(recorded, Mixing(*(drawn[rows] for drawn in mixing)), f"{mode}_{{}}")


def draws(mixup: Mixup, batch_size: int = 4, size: tuple[int, int] = (32, 32), times: int = 400) -> list[Mixing]:
    return [mixup.draw(batch_size, size, np.random.default_rng([7, i])) for i in range(times)]


def cut(mixing: Mixing) -> np.ndarray:
    """Return a mask of the entries that are CutMix with a non-empty box."""
    return (mixing.boxes[:, 2:] > 0).all(axis=1)


def test_mixup_and_cutmix_take_turns():
    for share in (0.0, 0.3, 1.0):
        mixings = draws(Mixup(10, switch_prob=share))
        cutmix = np.concatenate([mixing.keep == 1 for mixing in mixings])
        assert abs(cutmix.mean() - share) <= 5 * np.sqrt(share * (1 - share) / len(cutmix))


def test_lam_follows_the_beta_distributions():
    mixup = np.concatenate([mixing.lam for mixing in draws(Mixup(10, 0.8, 0.0), times=3000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))
    assert abs(mixup.mean() - 0.5) < 5 * np.sqrt(1 / 10.4 / 3000)
    assert abs(mixup.var() - 1 / 10.4) < 0.01


def test_boxes_have_even_sides_unless_a_border_cuts_them():
    boxes = np.concatenate([mixing.boxes for mixing in draws(Mixup(10, 0.0, 1.0), size=(64, 96))])
    top, left, height, width = boxes.T
    assert (top + height <= 64).all()
    assert (left + width <= 96).all()
    inner = (top > 0) & (left > 0) & (top + height < 64) & (left + width < 96)
    assert inner.sum() > 50
    assert (boxes[inner, 2:] % 2 == 0).all()
    assert (height[~inner] % 2 == 1).any()
    # lam is uniform, so the sides of an uncut box are sqrt(1 - lam) of the image's: alike on both axes
    assert (abs(height[inner] / 64 - width[inner] / 96) <= 2 / 64 + 2 / 96).all()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_alphas_of_0(mode):
    assert not any(cut(mixing).any() for mixing in draws(Mixup(10, 0.8, 0.0, mode=mode), times=50))
    assert all((mixing.keep == 1).all() for mixing in draws(Mixup(10, 0.0, 1.0, mode=mode), times=50))
    neither = Mixup(10, 0.0, 0.0, mode=mode)
    images, labels = paddle.rand([4, 3, 8, 8]), paddle.to_tensor([3, 0, 9, 3])
    mixed, targets = neither(images, labels, np.random.default_rng(0))
    np.testing.assert_array_equal(mixed.numpy(), images.numpy())
    np.testing.assert_allclose(targets.numpy(), np.eye(10)[[3, 0, 9, 3]] * 0.9 + 0.01, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("prob", [0.0, 0.4])
def test_probability_of_mixing(mode, prob):
    lam = np.concatenate([mixing.lam for mixing in draws(Mixup(10, prob=prob, cutmix_alpha=0.0, mode=mode))])
    assert abs((lam < 1).mean() - prob) <= 5 * np.sqrt(prob * (1 - prob) / 400)


def test_boxes_within_minmax():
    mixings = draws(Mixup(10, 0.0, 0.0, cutmix_minmax=(0.25, 0.5)), size=(32, 64))
    top, left, height, width = np.concatenate([mixing.boxes for mixing in mixings]).T
    assert (height.min(), height.max(), width.min(), width.max()) == (8, 16, 16, 32)
    assert (top + height <= 32).all()
    assert (left + width <= 64).all()
    np.testing.assert_allclose(np.concatenate([m.lam for m in mixings]), 1 - height * width / 2048, rtol=1e-12)
    whole = Mixup(10, 0.0, 0.0, cutmix_minmax=(1.0, 1.0)).draw(2, (8, 8), np.random.default_rng(0))
    assert (whole.lam == 0).all()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_any_batch_is_mixed_with_its_mirror(mode, batch_size):
    mixup = Mixup(6, mode=mode, label_smoothing=0.0)
    images = np.random.default_rng(0).standard_normal((batch_size, 3, 10, 12)).astype(np.float32)
    labels = np.arange(batch_size)
    for seed in range(6):
        mixing = mixup.draw(batch_size, (10, 12), np.random.default_rng(seed))
        assert len(mixing.lam) == (1 if mode == "batch" else batch_size)
        if mode == "pair":
            assert (mixing.lam == mixing.lam[::-1]).all()
            assert (mixing.boxes == mixing.boxes[::-1]).all()
        mixed, targets = mixup(paddle.to_tensor(images), paddle.to_tensor(labels), np.random.default_rng(seed))
        for i in range(batch_size):
            keep, (top, left, height, width), lam = (drawn[0 if mode == "batch" else i] for drawn in mixing)
            expected = keep * images[i] + (1 - keep) * images[-1 - i]
            inside = np.s_[:, top : top + height, left : left + width]
            expected[inside] = images[-1 - i][inside]
            np.testing.assert_allclose(mixed.numpy()[i], expected, **TOLERANCE)
            target = lam * np.eye(6)[i] + (1 - lam) * np.eye(6)[batch_size - 1 - i]
            np.testing.assert_allclose(targets.numpy()[i], target, **TOLERANCE)


def test_the_generator_decides_everything():
    mixup, images, labels = Mixup(10, mode="elem"), paddle.rand([6, 3, 8, 8]), paddle.arange(6)
    first, again, other = (mixup(images, labels, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0].numpy(), again[0].numpy())
    np.testing.assert_array_equal(first[1].numpy(), again[1].numpy())
    assert (first[1].numpy() != other[1].numpy()).any()
