"""pengzhiliang/MAE-pytorch: pre-training and classifiers without a class token on one-dimensional positions."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from plsc_mae.data.transforms import random_resized_crop_box
from plsc_mae.methods.base import ClassifierRecipe
from plsc_mae.methods.mae import BeitStyleMAE
from plsc_mae.weights.dialects import autoencoder


class MAEPytorch(BeitStyleMAE):
    """Its pre-training (run_mae_pretraining.py): targets normalized by channel, bilinear crops, no flip."""

    foreign = MappingProxyType({"mae_pytorch": autoencoder.infer_arguments})
    dialect = "mae_pytorch"

    def switches(self, config: Any) -> dict[str, Any]:
        """It has none."""
        return {}

    def hflip(self, config: Any) -> float:
        """Images are not flipped."""
        return 0.0


def _classifier_arguments(config: Any) -> dict[str, Any]:
    return {
        "global_pool": config.global_pool,
        "init_scale": config.init_scale,
        "drop_rate": config.drop,
        "attn_drop_rate": config.attn_drop_rate,
    }


METHOD = MAEPytorch()
CLASSIFIER = ClassifierRecipe(_classifier_arguments, probe_crop=random_resized_crop_box)
