"""Sketches have the shapes of the real networks, and no weights."""

from __future__ import annotations

import paddle
import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.methods.sweep import SweepTask
from plsc_mae.parallel.group import Group
from plsc_mae.parallel.tensor import share_blocks
from plsc_mae.plan.activation_memory import Conditions
from plsc_mae.plan.networks import dissect
from plsc_mae.plan.sketch import check_sharing, sketch

pytestmark = pytest.mark.compat


def real_task(config):
    if config.phase == "pretrain":
        return load_method(config.method).build_task(config)
    model = build_classifier(config, config.nb_classes)
    task = SweepTask if getattr(config, "lr_sweep", None) else ClassifyTask
    return task(model, build_normalize(config), config, config.nb_classes)


def shapes(task) -> dict[str, tuple]:
    return {name: (tuple(p.shape), p.stop_gradient) for name, p in task.named_parameters()}


def counts(task) -> tuple[int, int]:
    sizes = [(int(p.size), p.stop_gradient) for p in task.parameters()]
    return sum(size for size, frozen in sizes if not frozen), sum(size for size, frozen in sizes if frozen)


def test_a_sketch_is_the_real_network_without_weights(config):
    drawn, real = sketch(config).task, real_task(config)
    assert shapes(drawn) == shapes(real)
    assert not any(p._is_initialized() for p in drawn.parameters())
    assert all(p._is_initialized() for p in real.parameters())


def test_every_parameter_belongs_to_one_part(config):
    real = real_task(config)
    anatomy = dissect(real, config, Conditions(1))
    trained, frozen = counts(real)
    assert sum(part.trained for part in anatomy.parts) == trained
    assert sum(part.frozen for part in anatomy.parts) + anatomy.apart == frozen
    assert anatomy.largest == max(int(p.size) for p in real.parameters() if not p.stop_gradient)


def test_tensor_parallelism_leaves_a_process_what_is_planned(config):
    real = real_task(config)
    anatomy = dissect(real, config, Conditions(1, tensor_parallel=2))
    share_blocks(real.model, Group(1, (0, 1)))
    trained, frozen = counts(real)
    assert sum(part.trained for part in anatomy.parts) == trained
    assert sum(part.frozen for part in anatomy.parts) + anatomy.apart == frozen


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
    anatomy = dissect(task, config, Conditions(1))
    assert sum(part.trained for part in anatomy.parts) == published
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


def test_heads_that_do_not_divide_are_refused(config_of):
    model = sketch(config_of("pretrain --model mae_vit_tiny_patch16")).task.model
    with pytest.raises(ConfigError, match="--tensor_parallel 2 does not divide the 3 attention heads"):
        check_sharing(model, 2)
    check_sharing(model, 1)
