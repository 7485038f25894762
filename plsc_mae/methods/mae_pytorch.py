"""pengzhiliang/MAE-pytorch: classifiers without a class token on fixed one-dimensional positions."""

from __future__ import annotations

from typing import Any

from plsc_mae.data.transforms import random_resized_crop_box
from plsc_mae.methods.base import ClassifierRecipe


def _classifier_arguments(config: Any) -> dict[str, Any]:
    return {
        "global_pool": config.global_pool,
        "init_scale": config.init_scale,
        "drop_rate": config.drop,
        "attn_drop_rate": config.attn_drop_rate,
    }


CLASSIFIER = ClassifierRecipe(_classifier_arguments, probe_crop=random_resized_crop_box)
