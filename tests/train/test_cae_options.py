"""CAE's options in real runs: each one changes what is computed, and none stops a run."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.train.checkpoint.file import load
from plsc_mae.train.log.run_logger import RunLogger

pytestmark = [
    pytest.mark.compat,
    pytest.mark.once,
    pytest.mark.long,
    pytest.mark.parametrize("run", ["cae"], indirect=True),
]

STEPS = "--batch_size 12 --max_train_step 2"
RGB = "--target_mode rgb --decoder_num_classes none"


@pytest.fixture
def losses(run):
    """Losses of a few updates with further flags: {"loss": [...], "loss_main": [...], ...}."""

    def train(flags: str = "", steps: str = STEPS) -> dict[str, list[float]]:
        records = run.here(f"run{len(list(run.folder.iterdir()))}", f"{steps} {flags}")
        assert all(np.isfinite(record["loss"]) for record in records)
        return {name: [record[name] for record in records] for name in records[0]}

    return train


def test_options_of_the_network_and_the_data_change_the_first_loss(losses):
    """The first update's rate is 0: whatever makes the loss differ has acted in the first forward pass."""
    steps = "--batch_size 4 --max_train_step 1"
    plain = losses("", steps)["loss"]
    assert losses("", steps)["loss"] == plain
    seen = [plain[0]]
    for flags in (
        "--mask_generator random --ratio_mask_patches 0.5 --num_mask_patches none",
        "--num_mask_patches 9",
        "--min_mask_patches_per_block 8",
        "--max_mask_patches_per_block 2",
        "--color_jitter 0.4",
        "--train_interpolation random",
        "--train_interpolation bilinear",
        "--second_interpolation bicubic",
        "--crop_min_size 0.9",
        "--crop_max_size 0.2",
        "--imagenet_default_mean_and_std",
        "--abs_pos_emb",
        "--rescale_init",
        "--drop_path 0",
        "--mlp_ratio 2",
        "--regressor_depth 2",
        "--num_decoder_self_attention 0",
        "--layer_scale_init_value 0",
        "--decoder_layer_scale_init_value 0.2",
        "--dual_loss_weight 1",
        "--dual_loss_type kld",
        "--discrete_vae_seed 1",
        "--discrete_vae_hidden 4",
        "--decoder_num_classes 16",
        "--seed 1",
    ):
        first = losses(flags, steps)["loss"][0]
        assert first not in seen, flags
        seen.append(first)


def test_options_of_the_loss_change_their_part_only(losses):
    plain = losses()
    for flags, factor in (("--dual_loss_weight 1", 0.5), ("--dual_loss_weight 0", 0.0)):
        other = losses(flags)
        assert other["loss_main"][0] == plain["loss_main"][0]
        assert other["loss_align"][0] == pytest.approx(factor * plain["loss_align"][0], rel=1e-6)
    divergence = losses("--dual_loss_type kld")
    assert divergence["loss_main"][0] == plain["loss_main"][0]
    assert 0 < divergence["loss_align"][0] != plain["loss_align"][0]


def test_pixel_targets(losses):
    first = {}
    for kind in ("layernorm", "none", "patch", "channel"):
        found = losses(f"{RGB} --normalized_pixel {kind}")
        assert "mlm_acc" not in found
        assert found["loss"][0] == pytest.approx(found["loss_main"][0] + found["loss_align"][0], rel=1e-5)
        first[kind] = found["loss_main"][0]
    assert len(set(first.values())) == 4
    # Normalized pixels have variance 1, to which predictions of a fresh network add their own.
    assert all(0.9 < first[kind] < 4 for kind in ("layernorm", "patch", "channel"))


def test_denorm_takes_pixels_from_the_image_and_changes_nothing_else(losses):
    flags = f"{RGB} --imagenet_default_mean_and_std --normalized_pixel layernorm"
    plain, denormed = losses(flags), losses(f"{flags} --denorm")
    assert denormed["loss_align"][0] == plain["loss_align"][0]
    assert denormed["loss_main"][0] != pytest.approx(plain["loss_main"][0], rel=1e-3)


def test_vector_targets(losses, tmp_path, run):
    drawn = losses("--target_mode random")
    assert 0 <= drawn["mlm_acc"][0] <= 1
    other = losses("--target_mode random --discrete_vae_seed 1")
    assert other["loss_main"][0] != drawn["loss_main"][0]
    file = tmp_path / "vectors.npz"
    np.savez(file, vectors=np.random.default_rng(0).standard_normal((192, 32), np.float32))
    # What --discrete_vae_seed 0 draws.
    assert losses(f"--target_mode random --target_path {file}")["loss"] == drawn["loss"]


def test_weight_decay_and_learning_rate_are_logged_by_update(losses):
    found = losses("--weight_decay 0.05 --weight_decay_end 0.4 --warmup_steps 3 --lr 1e-3 --blr none", STEPS)
    assert found["lr"] == pytest.approx([0, 5e-4], rel=1e-6)
    updates = np.arange(2)  # of 4 epochs of 10 updates
    expected = 0.4 + 0.5 * (0.05 - 0.4) * (1 + np.cos(np.pi * updates / 40))
    assert found["weight_decay"] == pytest.approx(expected, rel=1e-6)


def test_pictures_are_drawn_at_the_start_and_at_the_end_of_epochs(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(RunLogger, "pictures", lambda _, pictures, step: drawn.append((step, pictures)))
    run.here("drawn", "--batch_size 60 --epochs 2 --vis_freq 1")
    assert [step for step, _ in drawn] == [0, 2, 4]
    for _, pictures in drawn:
        groups = Counter(tag.partition("/")[0] for tag in pictures)
        assert groups == {"reconstruction": 8, "token_attention": 4, "token_pca": 4}
        assert {(picture.dtype, picture.shape[2]) for picture in pictures.values()} == {(np.dtype(np.uint8), 3)}


def test_dual_path_ema_moves_once_in_an_update(run):
    """After one update t = m t + (1 - m) s from equal weights, of which the update's rate 0 changed nothing; after
    three, with accumulation over two iterations, the average is what the weights saved on the way say."""
    flags = "--batch_size 6 --accum_iter 2 --dual_path_ema 0.5 --drop_path 0"
    averaged, name = None, "encoder.norm.weight"
    for step in (1, 2, 3):
        run.here(f"until{step}", f"{flags} --max_train_step {step} --print_freq 2")
        tensors = load(run.folder / f"until{step}/checkpoint-latest.pd").model
        current, target = tensors[name], tensors[f"alignment_{name}"]
        averaged = current if averaged is None else 0.5 * averaged + 0.5 * current
        np.testing.assert_allclose(target, averaged, rtol=1e-6, atol=1e-7)
    assert (current != target).any()


def test_a_first_command_without_a_tokenizer_gets_one_sentence(run, capsys):
    words = run.arguments("none", "").copy()
    at = words.index("--discrete_vae_type")
    del words[at : at + 2]
    assert main(["pretrain", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("plsc-mae: error: --discrete_vae_weight_path is required: the folder with DALL-E's encoder")
    assert err.count("\n") == 1


def test_log_txt_has_the_means_of_all_parts(run):
    run.here("means", "--batch_size 30 --epochs 1 --warmup_epochs 0")
    (line,) = (json.loads(line) for line in (run.folder / "means/log.txt").read_text().splitlines())
    assert set(line) >= {
        *("train_loss", "train_loss_main", "train_loss_align", "train_mlm_acc", "train_top_token_share"),
        *("train_lr", "train_min_lr", "train_weight_decay", "train_loss_scale", "train_grad_norm"),
        *("epoch", "n_parameters"),
    }
