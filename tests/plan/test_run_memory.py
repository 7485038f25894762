"""The memory that a run announces is the one that `plsc-mae plan` estimates."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from plsc_mae.config import FINETUNE, PRETRAIN
from plsc_mae.config.resolve import from_mapping
from plsc_mae.methods import load_method
from plsc_mae.methods.base import StepOutput, Task
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.parallel.world import World
from plsc_mae.plan.estimate import estimate
from plsc_mae.plan.run_memory import planned_memory
from plsc_mae.plan.sketch import sketch

SIZES = {"input_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "device": "cpu"}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}


def test_pretraining_and_classifiers_are_planned_alike():
    mae = from_mapping({"model": "mae_vit_tiny_patch16", **SIZES, **DECODER}, PRETRAIN, "test")
    task = load_method(mae.method).build_task(mae)
    assert planned_memory(task, mae, World("cpu")) == estimate(sketch(mae), mae, 1).usage.total
    tuned = from_mapping({"model": "vit_tiny_patch16", "nb_classes": 5, **SIZES}, FINETUNE, "test")
    classifier = ClassifyTask(build_classifier(tuned, 5), build_normalize(tuned), tuned, 5)
    assert planned_memory(classifier, tuned, World("cpu")) == estimate(sketch(tuned), tuned, 1).usage.total


class Own(Task):
    """A task without an outline."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)

    def forward(self, batch):
        return StepOutput(paddle.zeros([]), {})


@pytest.mark.compat
def test_a_task_without_an_outline_has_no_estimate():
    config = from_mapping({"model": "mae_vit_tiny_patch16", **SIZES, **DECODER}, PRETRAIN, "test")
    assert planned_memory(Own(), config, World("cpu")) is None
