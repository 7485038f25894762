"""Layouts, traffic, precision and advice of a plan."""

from __future__ import annotations

import dataclasses

import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.plan.advice import candidates, remedy
from plsc_mae.plan.estimate import Layout, estimate
from plsc_mae.plan.sketch import sketch

pytestmark = pytest.mark.compat

PRETRAIN = "pretrain --model mae_vit_base_patch16 --batch_size 64"
FINETUNE = "finetune --model vit_base_patch16 --batch_size 32"
CAE = "pretrain --model cae_base_patch16_224_8k_vocab --batch_size 32"
GIB = 2**30


@pytest.fixture
def estimated(config_of):
    """Return the function that estimates the step of a command line on some devices."""

    def make(line: str, devices: int = 1, **options):
        config = config_of(line)
        return estimate(sketch(config), config, devices, **options)

    return make


def test_layouts(config_of):
    config = config_of(f"{FINETUNE} --tensor_parallel 2 --pipeline_parallel 4")
    assert Layout.of(config, 16) == Layout(data=2, tensor=2, pipeline=4, micro_batches=8)
    assert Layout.of(config_of(PRETRAIN), 16) == Layout(data=16)
    with pytest.raises(ConfigError, match=r"--devices 12 cannot form groups .* multiple of 8"):
        Layout.of(config, 12)


def test_gradients_go_round_a_ring(estimated):
    trained = 111_655_680
    assert not any(estimated(PRETRAIN).traffic)
    assert estimated(PRETRAIN, 8).traffic.gradients == pytest.approx(2 * 7 / 8 * 4 * trained)
    assert estimated(f"{PRETRAIN} --amp_level O2", 8).traffic.gradients == pytest.approx(2 * 7 / 8 * 2 * trained)
    sharded = [estimated(f"{PRETRAIN} --sharding_stage {stage}", 8).traffic for stage in (1, 2, 3)]
    once = 7 / 8 * 4 * trained
    assert [t.gradients / once for t in sharded] == pytest.approx([2, 1, 1])
    assert [t.sharding / once for t in sharded] == pytest.approx([1, 1, 2])


def test_tensor_parallelism_sums_tokens_four_times_a_block(estimated):
    """12 blocks of 197 tokens and 768 columns in 16 bits; two sums forward and two backward, over a ring of 2."""
    tokens = 32 * 197 * 768 * 2
    wide = estimated(f"{FINETUNE} --tensor_parallel 2", 2)
    assert wide.traffic.tensor == pytest.approx(12 * 4 * tokens)
    assert wide.traffic.gradients == 0
    assert estimated(f"{FINETUNE} --tensor_parallel 2 --recompute", 2).traffic.tensor == pytest.approx(12 * 6 * tokens)
    assert estimated(f"{FINETUNE} --tensor_parallel 2 --accum_iter 3", 2).traffic.tensor == 3 * wide.traffic.tensor
    with pytest.raises(ConfigError, match="--tensor_parallel 8 does not divide the 12 attention heads"):
        estimated(f"{FINETUNE} --tensor_parallel 8", 8)


def test_a_pipeline_holds_a_part_of_the_network(estimated):
    whole, half = estimated(FINETUNE), estimated(f"{FINETUNE} --pipeline_parallel 2", 2)
    assert 0.4 < half.usage.weights / whole.usage.weights < 0.6
    assert half.traffic.pipeline == 2 * 32 * 197 * 768 * 4
    assert half.usage.total < whole.usage.total
    assert (half.flash_blocks, half.blocks) == (6, 6)


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("line", [PRETRAIN, FINETUNE, "pretrain --model cae_base_patch16_224_8k_vocab"])
def test_what_saves_memory(estimated, line):
    plain = estimated(line, 8).usage
    for options in ("--recompute", "--sharding_stage 1", "--tensor_parallel 2", "--batch_size 16 --accum_iter 4"):
        assert estimated(f"{line} {options}", 8).usage.total < 0.95 * plain.total, options
    for options in ("--no_amp", "--device cpu"):
        assert estimated(f"{line} {options}", 8).usage.total > 1.2 * plain.total, options
    assert estimated(line, 8, capability=(7, 5)).usage.total > plain.total
    assert estimated(f"{line} --accum_iter 2", 8).usage.total >= plain.total


@pytest.mark.parametrize(
    ("line", "flash_blocks"),
    [
        (f"{PRETRAIN} --depth 2 --decoder_depth 3", (5, 5)),
        (f"{PRETRAIN} --depth 2 --decoder_depth 3 --num_heads 64", (3, 5)),  # heads of width 12
        (f"{PRETRAIN} --depth 2 --decoder_depth 3 --num_heads 3", (3, 5)),  # heads of width 256
        (f"{PRETRAIN} --depth 2 --decoder_depth 3 --no_amp", (0, 5)),
        (f"{PRETRAIN} --depth 2 --decoder_depth 3 --device cpu", (0, 5)),
        (f"{PRETRAIN} --depth 2 --decoder_depth 3 --deterministic", (0, 5)),
        (f"{FINETUNE} --depth 2", (2, 2)),
        ("finetune --model cae_base_patch16_224 --depth 2", (0, 2)),  # relative position bias
        ("finetune --model cae_base_patch16_224 --depth 2 --no_rel_pos_bias", (2, 2)),
        ("finetune --model cae_base_patch16_224 --depth 2 --no_rel_pos_bias --attn_drop_rate 0.1", (0, 2)),
        (f"{CAE} --depth 2 --regressor_depth 1 --num_decoder_self_attention 1", (6, 6)),
    ],
)
def test_attention_is_planned_as_it_runs(estimated, line, flash_blocks):
    """The blocks of CAE's alignment encoder count too."""
    found, before_ampere = estimated(line), estimated(line, capability=(7, 5))
    assert (found.flash_blocks, found.blocks) == flash_blocks
    assert before_ampere.flash_blocks == 0
    assert (found.usage.activations < before_ampere.usage.activations) is (flash_blocks[0] > 0)


def test_recompute_keeps_one_float32_tensor_per_block(estimated):
    """ViT-B fine-tuning: the inputs of 12 blocks, the activations of one block, and the tensors outside of blocks."""
    inputs = 12 * 32 * 197 * 768 * 4
    found = estimated(f"{FINETUNE} --recompute", 1).usage
    assert inputs < found.activations + found.working < 3 * inputs
    assert found.activations + found.working < 0.3 * estimated(FINETUNE).usage.activations


def test_the_least_change_comes_first(config_of):
    config = config_of(f"{PRETRAIN} --batch_size 4")
    first = list(candidates(config, 8))[:5]
    assert first == [
        {"recompute": True},
        {"sharding_stage": 1},
        {"batch_size": 2, "accum_iter": 2},
        {"batch_size": 1, "accum_iter": 4},
        {"recompute": True, "sharding_stage": 1},
    ]
    assert {"sharding_stage": 1} not in list(candidates(config, 1))
    assert {"recompute": True} not in list(candidates(dataclasses.replace(config, recompute=True), 8))


@pytest.mark.once
def test_advice_keeps_the_images_of_an_update_and_fits(config_of):
    config = config_of(f"{PRETRAIN} --batch_size 512")
    drawn = sketch(config)
    needed = estimate(drawn, config, 8).usage.total
    limits = [0.9 * needed, 0.3 * needed, 0.1 * needed]
    found = [remedy(drawn, config, 8, limit) for limit in limits]
    assert found[0].changes == {"recompute": True}
    for better, limit in zip(found, limits, strict=True):
        changed = dataclasses.replace(config, **better.changes)
        assert better.estimate.usage.total <= limit
        assert changed.batch_size * changed.accum_iter * Layout.of(changed, 8).data == 512 * 8
    assert remedy(drawn, config, 8, 0.1 * GIB) is None
    clipped = dataclasses.replace(config, clip_grad=1.0)  # which excludes the last candidate, sharding stage 3
    assert remedy(drawn, clipped, 8, 0.1 * GIB) is None
