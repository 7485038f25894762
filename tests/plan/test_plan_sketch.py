"""Sketches have the shapes of the real networks, and no weights."""

from __future__ import annotations

import paddle
import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.parallel.group import Group
from plsc_mae.parallel.tensor import check_divisible, share_blocks
from plsc_mae.pipeline.stages import stages_by_operations
from plsc_mae.plan.estimate import estimate
from plsc_mae.plan.memory import Parameters
from plsc_mae.plan.sketch import check_network, sketch

pytestmark = [pytest.mark.compat, pytest.mark.once]


def real_task(config):
    if config.phase == "pretrain":
        return load_method(config.method).build_task(config)
    model = build_classifier(config, config.nb_classes)
    task = SweepTask if getattr(config, "lr_sweep", None) else ClassifyTask
    return task(model, build_normalize(config), config, config.nb_classes)


def shapes(task) -> dict[str, tuple]:
    return {name: (tuple(p.shape), p.stop_gradient) for name, p in task.named_parameters()}


def test_a_sketch_is_the_real_network_without_weights(config):
    drawn, real = sketch(config).task, real_task(config)
    assert shapes(drawn) == shapes(real)
    assert not any(p._is_initialized() for p in drawn.parameters())
    assert all(p._is_initialized() for p in real.parameters())


def test_a_run_with_files_is_sketched_without_them(config_of):
    line = "pretrain --model cae_tiny_patch16_224_8k_vocab --depth 1 --discrete_vae_hidden 8"
    check_network(config_of(f"{line} --discrete_vae_weight_path nowhere"))
    check_network(config_of(f"{line} --target_mode random --target_path nowhere"))
    with pytest.raises(ConfigError, match="not for pre-training"):
        check_network(config_of("pretrain --model cae_base_patch16_224"))


@pytest.mark.parametrize("ways", [1, 2])
def test_a_process_holds_the_planned_parameters(config, ways):
    drawn, real = sketch(config).task, real_task(config)
    planned = Parameters.of(drawn, ways)
    share_blocks(real.model, Group(ways - 1, tuple(range(ways))))
    sizes = [(int(p.size), p.stop_gradient, p.ndim) for p in real.parameters()]
    assert planned == Parameters(
        trained=sum(size for size, frozen, _ in sizes if not frozen),
        frozen=sum(size for size, frozen, _ in sizes if frozen),
        matrices=sum(size for size, frozen, axes in sizes if not frozen and axes > 1),
        largest=max(size for size, frozen, _ in sizes if not frozen),
    )


@pytest.mark.parametrize(
    "line", ["finetune --model vit_base_patch16", "linprobe --model cae_base_patch16_224 --linear_type attentive"]
)
def test_the_stages_of_a_pipeline_hold_every_parameter_once(config_of, line):
    config = config_of(f"{line} --pipeline_parallel 5")
    found = sketch(config)
    assert estimate(found, config, devices=5).usage.total > 0
    whole, parts = shapes(found.task), [shapes(stage) for stage in found.stages]
    assert len(parts) == 5
    assert sum(len(part) for part in parts) == len(whole)
    assert {name: shape for part in parts for name, shape in part.items()} == whole
    depths = [len({name.split(".")[3] for name in part if ".blocks." in name}) for part in parts]
    assert depths == [len(blocks) for blocks in stages_by_operations(found.task.model, 5)]
    assert max(depths) - min(depths) <= 1


@pytest.mark.parametrize(
    ("line", "published"),
    [
        ("pretrain --model mae_vit_base_patch16", 111_655_680),  # facebookresearch/mae, without its fixed tables
        ("pretrain --model mae_vit_large_patch16", 329_239_296),
        ("finetune --model vit_base_patch16 --nb_classes 1000", 86_567_656),
        ("finetune --model vit_large_patch16 --nb_classes 1000", 304_326_632),
        ("finetune --model vit_huge_patch14 --nb_classes 1000", 632_045_800),
    ],
)
def test_published_sizes(config_of, line, published):
    config, before = config_of(line), paddle.base.core.host_memory_stat_current_value("Allocated", 0)
    task = sketch(config).task
    assert Parameters.of(task, tensor_parallel=1).trained == published
    assert paddle.base.core.host_memory_stat_current_value("Allocated", 0) - before < 2**28 < published * 4


def test_operations_are_those_of_the_network(config_of):
    """He et al. 2022: what is hidden is not encoded; 9.78 G multiply-accumulates forward for ViT-B at 224."""
    found = sketch(config_of("pretrain --model mae_vit_base_patch16"))
    assert found.forward_macs == pytest.approx(9.78e9, rel=2e-3)
    assert found.training_macs == 3 * found.forward_macs
    tuned = sketch(config_of("finetune --model vit_base_patch16"))
    assert tuned.forward_macs == pytest.approx(17.56e9, rel=2e-3)  # 17.5 in timm's tables
    probed = sketch(config_of("linprobe --model vit_base_patch16"))
    assert probed.training_macs == probed.forward_macs + 2 * 768 * 1000
    attended = sketch(config_of("linprobe --model vit_base_patch16 --linear_type attentive_no_parameter"))
    assert attended.forward_macs == probed.forward_macs + 2 * 197 * 768  # one query: logits and weighted sum
    assert attended.training_macs == attended.forward_macs + 2 * 768 * 1000
    swept = sketch(config_of("linprobe --model vit_base_patch16 --lr_sweep 0.1 0.2"))
    assert swept.forward_macs == probed.forward_macs + 768 * 1000  # a head per rate


def test_heads_that_do_not_divide_are_refused(config_of):
    model = sketch(config_of("pretrain --model mae_vit_tiny_patch16")).task.model
    with pytest.raises(ConfigError, match=r"--tensor_parallel 2 .* 3 attention heads"):
        check_divisible(model, 2)
    check_divisible(model, 1)


def test_attention_with_dropout_is_not_shared(config_of):
    model = sketch(config_of("finetune --model cae_base_patch16_224 --attn_drop_rate 0.1")).task.model
    with pytest.raises(ConfigError, match="--attn_drop_rate and --tensor_parallel"):
        check_divisible(model, 2)
