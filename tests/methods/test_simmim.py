"""SimMIM's masks, options, samples, schedule, groups and pictures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.config.simmim import SimMIMConfig, SimMIMFinetuneConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.display import Display, cross_out
from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method, load_recipe
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.methods.simmim import CellMaskGenerator
from plsc_mae.parity.oracle.simmim import multistep_rate

METHOD = load_method("simmim")
SMALL = {"input_size": (32,), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mask_patch_size": 16}
# Cells hidden in a square of cells, row by row, where the original draws with
# numpy.random.RandomState(seed).permutation; the legacy generator never changes.
DRAWN = [
    (0, "..#.##. ##.##.# .####.# .#..### ####### ..#..## #...#.#"),
    (1, "..###.. ...#..# #..#.#. ####.## #####.# ##.#### #.##..#"),
    (2024, "...#### ..#..## ####### ######. .#...## ...##.. ###.#.#"),
    (0, "..#..# .##.## .##### ..#.#. ..#### ####.#"),
]


@pytest.fixture
def config() -> SimMIMConfig:
    return SimMIMConfig(**SMALL)


@pytest.fixture
def batch(config) -> dict[str, paddle.Tensor]:
    rng = np.random.default_rng(0)
    masks = np.stack([CellMaskGenerator((4, 4), 2, 0.6)(rng).reshape(-1) for _ in range(2)])
    return {"image": paddle.to_tensor(rng.integers(0, 256, (2, 32, 32, 3), np.uint8)), "mask": paddle.to_tensor(masks)}


@pytest.mark.parametrize(("seed", "cells"), DRAWN)
def test_masks_equal_the_originals_for_its_generator(seed, cells):
    side = len(cells.split())
    mask = CellMaskGenerator((2 * side, 2 * side), 2, 0.6)(np.random.RandomState(seed))
    for offset in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = mask[offset[0] :: 2, offset[1] :: 2]
        assert ["".join(".#"[int(cell)] for cell in row) for row in part] == cells.split()


def test_the_first_cells_of_the_permutation_are_hidden():
    """The first 30 of 7 x 7 cells: four whole rows and two cells of the fifth, each 2 x 2 patches."""
    mask = CellMaskGenerator((14, 14), 2, 0.6)(SimpleNamespace(permutation=np.arange))
    assert mask[:8].all()
    np.testing.assert_array_equal(mask[8:10], np.broadcast_to([True] * 4 + [False] * 10, (2, 14)))
    assert not mask[10:].any()


@pytest.mark.parametrize(
    ("side", "ratio", "hidden"),
    [
        (7, 0.6, 30),  # of 49; 29.4 is rounded up
        (6, 0.6, 22),
        (5, 0.6, 15),  # of 25: a whole number stays
        (10, 0.6, 60),
        (10, 0.55, 56),  # of 100: the product in double precision is 55.00000000000001
        (14, 0.6, 118),
    ],
)
def test_number_of_hidden_cells(side, ratio, hidden):
    assert CellMaskGenerator((side, side), 1, ratio).num_hidden == hidden


@pytest.mark.parametrize(
    ("grid", "side", "ratio", "hidden"),
    [((14, 14), 2, 0.6, 30), ((14, 14), 1, 0.6, 118), ((20, 20), 2, 0.55, 56), ((4, 6), 2, 0.5, 3)],
)
def test_masks_hide_whole_cells_and_always_as_many(grid, side, ratio, hidden):
    generator = CellMaskGenerator(grid, side, ratio)
    assert generator.num_hidden == hidden
    for seed in range(5):
        mask = generator(np.random.default_rng(seed))
        assert mask.shape == grid
        assert mask.sum() == hidden * side**2
        cells = mask.reshape(grid[0] // side, side, grid[1] // side, side)
        np.testing.assert_array_equal(cells.any(axis=(1, 3)), cells.all(axis=(1, 3)))


def test_every_cell_is_hidden_equally_often():
    """1000 draws of 30 in 49 cells: the mean of each is within 5 standard errors, 0.078, of 30 / 49."""
    generator, rng = CellMaskGenerator((7, 7), 1, 0.6), np.random.default_rng(0)
    shares = np.mean([generator(rng) for _ in range(1000)], axis=0)
    assert np.abs(shares - 30 / 49).max() < 0.078


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_patch_size": 12}, "mask_patch_size 12 must be a multiple of the patch side 8"),
        ({"mask_patch_size": 24}, "divide the image of 32 x 32 pixels"),
        ({"mask_ratio": 0.9}, "mask_ratio 0.9 hides all 4 cells"),
    ],
)
def test_masks_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        METHOD.build_task(SimMIMConfig(**{**SMALL, **options}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"multisteps": (7, 7)}, "multisteps 7 7 must rise"),
        ({"multisteps": (7,), "lr_scheduler": "cosine"}, "multisteps has no effect"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        SimMIMConfig(**options)


def test_samples_belong_to_their_generator(config, tmp_path):
    """The crop is drawn first and then the mask; the same generator gives the same sample."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform, file = METHOD.train_transform(config), tmp_path / "a.png"
    one, two, other = (transform(open_image(str(file)), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one["image"].shape == (32, 32, 3)
    assert one["mask"].shape == (16,)
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key])
    assert (one["image"] != other["image"]).any()


def test_rates_of_pretraining_equal_the_oracle(config):
    published = SimMIMConfig()
    schedule = METHOD.build_task(config).schedule(published, 4e-4, 1)
    run = {"peak": 4e-4, "warmup": 10, "warmup_rate": 2e-6, "milestones": (700,), "factor": 0.1}
    for update in (0, 1, 2, 9, 10, 11, 699, 700, 701, 799):
        assert schedule(0.0, update).lr == pytest.approx(multistep_rate(update, **run), rel=1e-12)
    assert schedule(0.0, 5).weight_decay == 0.05


def test_rates_of_finetuning_drop_behind_the_warmup():
    """The head's rates at one iteration per epoch and 2048 images, as timm's cosine without warmup_prefix gives."""
    rates = load_recipe("simmim").finetune_schedule(SimMIMFinetuneConfig(), 5e-3, 1)
    expected = {1: 1e-6, 2: 2.5095e-4, 20: 4.75005e-3, 21: 4.52264e-3, 50: 2.57901e-3, 99: 5.9322e-6}
    for update, rate in expected.items():
        assert rates(0.0, update).lr == pytest.approx(rate, rel=1e-5), update


def test_finetuning_runs_by_these_rates_and_layers():
    config = SimMIMFinetuneConfig(**{name: value for name, value in SMALL.items() if name != "mask_patch_size"})
    task = ClassifyTask(build_classifier(config, 3), build_normalize(config), config, 3)
    assert task.schedule(config, 5e-3, 1)(0.0, 21).lr == pytest.approx(4.52264e-3, rel=1e-5)
    scales = {name: (g.lr_scale, g.weight_decay) for g in task.param_groups(0.05) for name in g.names}
    table = "encoder.blocks.1.attn.rel_pos_bias.relative_position_bias_table"
    assert scales[table] == (pytest.approx(0.65), 0.05)
    assert scales["encoder.cls_token"] == (pytest.approx(0.65**3), 0.0)
    assert scales["head.weight"] == (1.0, 0.05)


def test_the_class_token_is_not_decayed_and_the_mask_token_is(config):
    groups = METHOD.build_task(config).param_groups(0.05)
    decay = {name: group.weight_decay for group in groups for name in group.names}
    assert decay["encoder.cls_token"] == decay["encoder.blocks.0.gamma_1"] == decay["decoder.bias"] == 0.0
    decayed = ("mask_token", "rel_pos_bias.relative_position_bias_table", "patch_embed.proj.weight")
    assert all(decay[f"encoder.{name}"] == 0.05 for name in decayed)


def test_features_are_the_mean_of_visible_patches(config, batch):
    task = METHOD.build_task(config)
    task.eval()
    task.gives_features = True
    found = task(batch).features
    latent = task.model(task.normalize(batch["image"]), batch["mask"]).latent[:, 1:].numpy()
    expected = [tokens[~hidden].mean(axis=0) for tokens, hidden in zip(latent, batch["mask"].numpy(), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_pictures_of_other_channels_cross_out_hidden_patches(config, batch):
    task = METHOD.build_task(config)
    task.display = Display((2, 1, 0))
    masked = task.pictures(batch)["masked"]
    np.testing.assert_array_equal(masked, cross_out(masked, task.hidden_patches(batch)))
    assert (masked[:, ::8, ::8].min(axis=-1)[batch["mask"].numpy().reshape(2, 4, 4)] == 64).all()


def test_pictures(config, batch):
    task = METHOD.build_task(config)
    pictures = task.pictures(batch)
    assert list(pictures) == ["original", "masked", "reconstruction", "reconstruction + visible"]
    np.testing.assert_array_equal(pictures["original"], batch["image"].numpy())
    np.testing.assert_array_equal(task.hidden_patches(batch), batch["mask"].numpy().reshape(2, 4, 4))
    hidden = batch["mask"].numpy().reshape(2, 4, 4).repeat(8, axis=1).repeat(8, axis=2)
    both = pictures["reconstruction + visible"]
    np.testing.assert_array_equal(both[~hidden], pictures["original"][~hidden])
    np.testing.assert_array_equal(both[hidden], pictures["reconstruction"][hidden])
    assert np.ptp(pictures["masked"][hidden], axis=0).max() == 0  # ImageNet's mean color
    with pytest.raises(ConfigError, match="--patch_stats"):
        task.pictures(batch, "visible")
